"""The names of option values in the help of commands: `--n INTEGER`, `--layout voc|coco`, `--json` without a value."""

from typing import Any

from typer.core import TyperCommand, TyperGroup

_LABELS = {"str": "TEXT", "int": "INTEGER", "float": "NUMBER", "Path": "PATH"}


class _Labels:
    """Names values as above, and not <int>, <str> and (for flags) <bool> as typer does."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, with the labels of their values."""
        return _labelled(super().get_params(ctx))  # type: ignore[misc]  # of the other base class


class Command(_Labels, TyperCommand):
    """A command."""


class Group(_Labels, TyperGroup):
    """A group of commands."""


def _labelled(params: list[Any]) -> list[Any]:
    for param in params:
        if hasattr(param, "display_type"):  # earlier versions of typer have their own labels
            param.display_type_rich = _label_of(param)
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
