"""The documentation names all commands, options and fields, and its examples and links are valid."""

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gen_commands", ROOT / "docs/gen_commands.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_command_is_in_the_reference(hook: ModuleType) -> None:
    from factory.cli import stickers
    from factory.cli.main import app

    documented = set(re.findall(r"^## (.*)$", hook.command_reference(), re.MULTILINE))
    for group, prefix in ((app, "factory"), (stickers.app, "factory stickers")):
        for command in group.registered_commands:
            assert command.callback is not None
            name = command.name or command.callback.__name__.replace("_", "-")
            assert command.hidden or f"{prefix} {name}" in documented


def test_every_option_is_in_the_reference(hook: ModuleType) -> None:
    sections = re.split(r"^## ", hook.command_reference(), flags=re.MULTILINE)
    by_name = {section.splitlines()[0]: section for section in sections[1:]}
    for name, command, _ in hook.walk_commands():
        for param in hook.visible_params(command):
            if param.param_type_name == "option":
                assert param.opts[0] in by_name[name], f"{name} {param.opts[0]}"
            else:
                assert (param.metavar or param.name).lower() in by_name[name].lower(), f"{name} {param.name}"


def test_options_in_the_reference_are_not_escaped_twice(hook: ModuleType) -> None:
    page = hook.command_reference()
    assert "| `--prompt-style simple|rich` |" in page
    assert "\\[1&lt;=x&lt;=100000\\] |" in page


def test_every_field_of_a_recipe_is_described(hook: ModuleType) -> None:
    from factory.config.recipe import Recipe

    page = hook.recipe_reference()
    assert {name for name in Recipe.model_fields if f"| `{name}` |" not in page and f"## {name}\n" not in page} == set()
    assert "| `shard_size` | `100` | Samples per shard. |" in page
    assert "| `steps` | see description | Sampling steps; by default those of the model card" in page
    assert "`filters.min_detector_iou`" in page
    assert "|  |" not in page


def test_the_overview_of_commands_is_grouped_and_has_short_descriptions(hook: ModuleType) -> None:
    from factory.cli.main import app

    assert [
        command.name for command in app.registered_commands if not (command.hidden or command.rich_help_panel)
    ] == []
    first_lines = {name: command.help.split("\n\n")[0] for name, command, _ in hook.walk_commands()}
    assert {name: line for name, line in first_lines.items() if len(line) > 110} == {}


def test_options_of_commands_with_a_recipe_are_in_panels(hook: ModuleType) -> None:
    commands = [command.get_params(context) for _, command, context in hook.walk_commands()]
    with_recipe = [params for params in commands if any(param.name == "recipe" for param in params)]
    assert len(with_recipe) == 4
    without = {param.name for params in with_recipe for param in params if param.rich_help_panel is None}
    assert without == {"out", "recipe", "extend", "force", "as_json", "help"}


def test_help_texts_have_no_line_breaks_within_a_paragraph(hook: ModuleType) -> None:
    for name, command, _ in hook.walk_commands():
        assert all("\n" not in paragraph for paragraph in command.help.split("\n\n")), name


def test_usage_shows_what_each_argument_is(hook: ModuleType) -> None:
    arguments = {
        param.metavar
        for _, command, _ in hook.walk_commands()
        for param in hook.visible_params(command)
        if param.param_type_name == "argument"
    }
    assert arguments == {
        *("DATASET", "CONFIG", "GROUNDER", "CHECKPOINT", "SEGMENTER", "NAME=FOLDER", "JOB", "MODEL"),
    }


def test_hidden_options_are_not_in_the_reference(hook: ModuleType) -> None:
    for _, command, _ in hook.walk_commands():
        assert not any(getattr(param, "hidden", False) for param in hook.visible_params(command))


def test_the_layer_diagram_is_the_import_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["id"] == "layers")
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    diagram = text.split("<!-- layers -->")[1].split("```")[1].strip().splitlines()
    drawn = [re.split(r"\s{2,}", line)[0] for line in diagram]
    assert drawn == [re.sub(r" [|:] ", " ", layer) for layer in layers]


@pytest.mark.parametrize(
    "page", [*sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("*.md"))], ids=lambda page: page.name
)
def test_files_named_in_the_documentation_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    paths = set(re.findall(r"`((?:factory|tests|jobs|schemas|benchmarks|docs)/[\w./-]+\.\w+)`", text))
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert missing == []


PAGES_WITH_COMMANDS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]


@pytest.mark.parametrize("page", PAGES_WITH_COMMANDS, ids=lambda page: page.name)
def test_commands_in_the_documentation_have_valid_options(page: Path, hook: ModuleType) -> None:
    commands = {name: command for name, command, _ in hook.walk_commands()}
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for line in "\n".join(blocks).splitlines():
        if line.startswith("factory "):
            words = shlex.split(line, comments=True)
            size = 3 if words[1] == "stickers" else 2
            commands[" ".join(words[:size])].make_context(words[1], words[size:])


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("[a](docs/jobs.md#x)", "[a](jobs.md#x)"),
        ("![p](docs/pictures/samples.jpg)", "![p](pictures/samples.jpg)"),
        ("[l](LICENSE)", "l"),
        ("[s](SECURITY.md)", "[s](security.md)"),
        ("[u](https://example.org)", "[u](https://example.org)"),
    ],
)
def test_links_of_root_files_are_adapted(hook: ModuleType, markdown: str, expected: str) -> None:
    assert hook.adapt_links(markdown) == expected


def _yaml_examples(key: str) -> list[str]:
    """The YAML blocks of the documentation that start with this key, after comments."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES_WITH_COMMANDS)
    return re.findall(rf"^```yaml\n((?:#[^\n]*\n)*{key}:.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_examples_of_recipes_are_valid() -> None:
    from factory.config.recipe import make_recipe
    from factory.files.strict_yaml import parse_yaml

    examples = _yaml_examples("classes")
    assert len(examples) >= 4
    for example in examples:
        make_recipe(parse_yaml(example, "example"))


def test_the_columns_of_the_manifest_are_documented() -> None:
    from factory.dataset.manifest import SCHEMA

    page = (ROOT / "docs/dataset.md").read_text(encoding="utf-8")
    assert [name for name in SCHEMA.names if f"`{name}`" not in page] == []


def test_the_example_of_a_nightly_configuration_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from factory.nightly.config import load_config

    monkeypatch.setenv("SLACK_WEBHOOK", "https://hooks.example.org/services/1")
    (example,) = _yaml_examples("root")
    (tmp_path / "nightly.yaml").write_text(example, encoding="utf-8")
    assert load_config(tmp_path / "nightly.yaml").exports == ("coco",)


def test_the_example_of_a_job_is_valid(tmp_path: Path) -> None:
    from tests.support.in_process import output

    (example,) = _yaml_examples("out")
    (tmp_path / "pets.yaml").write_text(example, encoding="utf-8")
    commands = output("run", tmp_path / "pets.yaml", "--set", "n=500", "--dry-run").splitlines()
    assert commands[0] == "factory generate --classes dog,cat --n 500 --shards runs/pets/dataset"


def test_the_changelog_of_a_release_is_short_and_repeats_nothing() -> None:
    for release in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("\n## ")[1:]:
        assert len(release.splitlines()) <= 160, "describe what users of the last release notice (CONTRIBUTING.md)"
        headings = re.findall(r"^### .*", release, re.MULTILINE)
        entries = re.findall(r"^\s*- (.*)", release, re.MULTILINE)
        assert (len(set(headings)), len(set(entries))) == (len(headings), len(entries))
