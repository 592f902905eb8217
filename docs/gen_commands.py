"""MkDocs hook: generates pages at build time, so that they always match the code.

`commands.md` lists every command with its options, and `recipe.md` every field of a recipe. The home page, changelog,
security policy and contributing guide are the files in the repository root, with adapted links.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import typer

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parent.parent
ROOT_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
}


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Add the generated pages to the site."""
    from mkdocs.structure.files import File

    for source, target in ROOT_PAGES.items():
        files.append(File.generated(config, target, content=adapt_links((ROOT / source).read_text(encoding="utf-8"))))
    files.append(File.generated(config, "commands.md", content=command_reference()))
    files.append(File.generated(config, "recipe.md", content=recipe_reference()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point links from `docs/` to files in the repository root at the generated pages."""
    for source, target in ROOT_PAGES.items():
        markdown = markdown.replace(f"](../{source}", f"]({target}")
    return markdown


def adapt_links(markdown: str) -> str:
    """Rewrite links that are relative to the repository root into links that are relative to `docs/`.

    Files that the site does not contain, such as LICENSE, become plain text.
    """
    for source, target in ROOT_PAGES.items():
        markdown = markdown.replace(f"]({source}", f"]({target}")
    markdown = markdown.replace("](docs/", "](")
    pages = "|".join(re.escape(page) for page in ROOT_PAGES.values())
    outside = rf"(?<!!)\[([^\]]+)\]\((?!https?:|#|{pages}|pictures/|[a-z-]+\.md)[^)]*\)"
    return re.sub(outside, r"\1", markdown)


def command_reference() -> str:
    """Every visible command with its arguments and options, as Markdown."""
    parts = [
        "# Commands",
        "This page is generated from the code. `factory COMMAND --help` prints the same information.",
    ]
    for name, command, context in walk_commands():
        parts.append(f"## {name}")
        parts.append(_description(command.help or ""))
        usage = " ".join(command.collect_usage_pieces(context))
        parts.append(f"```\n{name} {usage}\n```")
        rows = [_row(param, context) for param in visible_params(command)]
        if rows:
            parts.append("\n".join(["| option | description |", "|---|---|", *rows]))
    return "\n\n".join(part for part in parts if part) + "\n"


def recipe_reference() -> str:
    """Every field of a recipe with its default and description, as Markdown."""
    from factory.config.recipe import Recipe

    fields = {name: field for name, field in Recipe.model_fields.items() if _section(field) is None}
    parts = [
        "# Recipe fields",
        "This page is generated from the code. [Recipes](generate.md#recipes) describes recipe files; "
        "`schemas/recipe.json` also contains the types and bounds of the fields.",
        "## Top level",
        _field_table(fields),
    ]
    for name, field in Recipe.model_fields.items():
        section = _section(field)
        if section is not None:
            parts += [f"## {name}", (section.__doc__ or "").partition("\n\n")[0], _field_table(section.model_fields)]
    return "\n\n".join(parts) + "\n"


def walk_commands() -> Iterator[tuple[str, Any, Any]]:
    """Yield the full name, the command and a context for the application and each of its visible commands."""
    from factory.cli.main import app

    yield from _walk(typer.main.get_command(app), "factory", None)


def visible_params(command: Any) -> list[Any]:
    """The arguments and options of a command that its help shows, without the shell completion options."""
    return [
        param
        for param in command.params
        if not getattr(param, "hidden", False) and param.name not in ("install_completion", "show_completion")
    ]


def _walk(command: Any, name: str, parent: Any) -> Iterator[tuple[str, Any, Any]]:
    context = command.make_context(name.split()[-1], [], parent=parent, resilient_parsing=True)
    yield name, command, context
    for child_name, child in getattr(command, "commands", {}).items():
        if not child.hidden:
            yield from _walk(child, f"{name} {child_name}", context)


def _row(param: Any, context: Any) -> str:
    names, text = param.get_help_record(context)
    return f"| {_cell(f'`{names}`')} | {_cell(text)} |"


def _section(field: Any) -> Any:
    """The section that a field of a recipe contains; None for a plain field."""
    from factory.config.sections import Section

    kinds = (field.annotation, *get_args(field.annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


def _field_table(fields: Any) -> str:
    rows = ["| field | default | description |", "|---|---|---|"]
    for name, field in fields.items():
        description = field.description or ""
        default = "required" if field.is_required() else f"`{json.dumps(field.get_default())}`"
        if "default" in description.lower():  # it depends on other fields or on the hardware
            default = "see description"
        rows.append(f"| `{name}` | {default} | {_cell(description)} |")
    return "\n".join(rows)


def _cell(text: str) -> str:
    """A text as a cell of a table. Python-Markdown shows code as it is, and allows `|` in it."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(part if part[:1] == "`" else _escaped(part) for part in parts)


def _escaped(text: str) -> str:
    return re.sub(r"([*_|\[\]])", r"\\\1", text.replace("<", "&lt;"))


def _description(text: str) -> str:
    """A command's help as Markdown: examples as code blocks, names of pages as links."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        line = " ".join(paragraph.split())
        example = re.match(r"Examples?: (.*)", line)
        if example:
            paragraphs.append(f"```\n{example[1]}\n```")
        else:
            paragraphs.append(re.sub(r"docs/([a-z-]+\.md)", r"[\1](\1)", line))
    return "\n\n".join(paragraphs)
