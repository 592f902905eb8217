"""The help of commands: names of option values (`--n INTEGER`, `--layout voc|coco`), and panels of options."""

from collections import Counter
from typing import Any

from typer.core import TyperCommand, TyperGroup

_LABELS = {"str": "TEXT", "int": "INTEGER", "float": "NUMBER", "Path": "PATH"}
_PANELS = {
    "Content": (
        *("classes", "n", "split", "objects", "cooccurrence", "prompts", "prompt_style", "seed"),
        *("real", "layout", "annotations", "real_set", "max_classes", "min_area"),
    ),
    "Models": (
        *("model", "lora", "masks", "detector", "steps", "guidance", "guidance_schedule", "dtype", "batch"),
        *("method", "inversion_steps", "noise_level"),
    ),
    "Filters and shards": ("min_confidence", "attempts", "shard_size"),
    "Workers": (
        *("workers", "gpus_per_worker", "detectors", "gpus_per_detector", "address", "grace"),
        *("rate", "measure"),
    ),
}
"""The options of commands with a recipe by subject; the others, such as --shards and --json, come first."""


class Command(TyperCommand):
    """A command whose help labels values as above and shows its options in panels. It rejects repeated options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments. Of two values of an option, perhaps given by two names, the parser takes the last.

        Shell completion parses an unfinished command line, which must not raise an error.
        """
        if ctx.resilient_parsing:
            return super().parse_args(ctx, args)
        given = Counter(self.make_parser(ctx).parse_args(list(args))[2])
        for option, times in given.items():
            if times > 1 and not (option.multiple or getattr(option, "is_flag", False)):
                ctx.fail(f"{' or '.join(option.opts)} is given {times} times, but takes one value")
        return super().parse_args(ctx, args)

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, with the labels of their values and in panels."""
        return _in_panels(_labelled(super().get_params(ctx)))


class Group(TyperGroup):
    """A group of commands whose help labels values as above."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, with the labels of their values."""
        return _labelled(super().get_params(ctx))


def _labelled(params: list[Any]) -> list[Any]:
    """Label values as above, instead of <int>, <str> and (for flags) <bool> as typer does."""
    for param in params:
        if hasattr(param, "display_type"):  # earlier versions of typer have their own labels
            param.display_type_rich = _label_of(param)
    return params


def _in_panels(params: list[Any]) -> list[Any]:
    if any(param.name == "recipe" for param in params):
        panels = {name: panel for panel, names in _PANELS.items() for name in names}
        for param in params:
            param.rich_help_panel = panels.get(param.name)
    return params


def _label_of(param: Any) -> Any:
    def label(ctx: Any) -> str:
        """The label of a value; empty for flags, and for arguments, which have a name."""
        if param.param_type_name == "argument" or getattr(param, "is_flag", False):
            return ""
        name = str(param.metavar or param.display_type(ctx)).strip("<>").removesuffix(" range")
        name = name.removeprefix("list[").removesuffix("]")
        return _LABELS.get(name, name)

    return label
