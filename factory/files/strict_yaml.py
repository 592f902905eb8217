"""YAML for handwritten files: no surprising scalars, no repeated keys, and a limit on the size of the document."""

import re
from typing import Any

import yaml
from yaml.composer import Composer

from factory.errors import UserError

MAX_YAML_NODES = 200_000
"""Limit on values after expanding aliases, or the length of the text if that is more: a few lines of nested aliases can
expand to billions."""
_LARGE = 2**16
"""Characters from which libyaml reads a document, if it is installed: several times faster, with the same values."""
_LENIENT = ("\t", "\ufeff")
"""Characters with which libyaml accepts documents that PyYAML rejects."""
_ERRORS = (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError)
"""What PyYAML raises: besides its own errors, those of invalid tagged values and of deep nesting."""
_STANDARD = "tag:yaml.org,2002:"
_TAGS = {_STANDARD + name for name in ("str", "int", "float", "bool", "null", "seq", "map", "merge")}
"""Types of values. `!!set`, for instance, would lose the order of classes, and `!!timestamp` would give a date."""
_KEY_TAGS = tuple(_STANDARD + name for name in ("str", "int", "float", "merge"))
"""Types of keys. `true:` and `~:` are mistakes, and they cannot be sorted together with text."""


class _PlainLoader(yaml.SafeLoader):
    """YAML loader that keeps all scalars as text, except true, false and null.

    YAML 1.1 reads `2:1` as 121 (base 60), `010` as 8 and `no` as false, which is not what the author meant.
    """


class _TypedLoader(yaml.SafeLoader):
    """YAML loader that also reads decimal numbers."""


def _add_resolvers(loader: type[yaml.SafeLoader], with_numbers: bool) -> None:
    loader.yaml_implicit_resolvers = {}
    resolvers = [
        ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
        ("merge", r"<<", "<"),
        ("null", r"~|null|Null|NULL|", "~nN"),
    ]
    if with_numbers:
        # A float requires a point, as in YAML 1.1: a digest such as 12e45 is text.
        resolvers += [
            ("int", r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
            ("float", r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+][0-9]+)?", "-+.0123456789"),
            ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
        ]
    for name, pattern, first in resolvers:
        characters = [*first, ""] if name == "null" else list(first)
        loader.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(f"^(?:{pattern})$"), characters)


_add_resolvers(_PlainLoader, with_numbers=False)
_add_resolvers(_TypedLoader, with_numbers=True)


def _with_libyaml(loader: type[yaml.SafeLoader]) -> Any:
    """The same loader on libyaml's parser; None without libyaml. PyYAML composes, so deep nesting cannot crash it."""
    if not yaml.__with_libyaml__:
        return None

    class Fast(Composer, yaml.CSafeLoader):
        yaml_implicit_resolvers = loader.yaml_implicit_resolvers

        def __init__(self, text: str) -> None:
            yaml.CSafeLoader.__init__(self, text)
            Composer.__init__(self)

    return Fast


_FAST: dict[type[yaml.SafeLoader], Any] = {loader: _with_libyaml(loader) for loader in (_PlainLoader, _TypedLoader)}


def parse_plain_yaml(text: str, where: str) -> Any:
    """Parse YAML into dicts, lists, strings, booleans and None; numbers stay text.

    Raises UserError for invalid YAML, keys that are repeated or neither text nor numbers, and documents that are too
    deeply nested or expand too much through aliases.
    """
    return _parse(text, where, _PlainLoader)


def parse_yaml(text: str, where: str) -> Any:
    """As `parse_plain_yaml`, but decimal numbers become int and float."""
    return _parse(text, where, _TypedLoader)


def _parse(text: str, where: str, kind: type[yaml.SafeLoader]) -> Any:
    fast = _FAST[kind] if len(text) >= _LARGE and not any(character in text for character in _LENIENT) else None
    try:
        try:
            return _construct(text, where, fast or kind)
        except (yaml.YAMLError, UnicodeError):
            if fast is None:
                raise
            return _construct(text, where, kind)  # for its message
    except UserError:
        raise
    except RecursionError as error:
        raise UserError(f"cannot parse {where}: it is nested too deeply.") from error
    except _ERRORS as error:
        raise UserError(f"cannot parse {where}: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    """What is wrong and where. PyYAML would quote the line, which may contain a secret."""
    mark = getattr(error, "problem_mark", None)
    if not isinstance(error, yaml.MarkedYAMLError) or mark is None:
        return " ".join(str(error).split())
    context = "" if error.context_mark is None else f", {error.context} from line {error.context_mark.line + 1}"
    return f"line {mark.line + 1}, column {mark.column + 1}{context}: {error.problem}"


def _construct(text: str, where: str, kind: Any) -> Any:
    loader = kind(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_node(node, where, max(MAX_YAML_NODES, len(text)))
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check_node(root: yaml.Node, where: str, limit: int) -> None:
    """Raise UserError for duplicate keys, recursive aliases, and too many values after alias expansion."""
    sizes: dict[int, int | None] = {}

    def size(node: yaml.Node) -> int:
        known = sizes.get(id(node), 0)
        if known:
            return known
        if known is None:
            raise UserError(f"cannot parse {where}: the value on line {node.start_mark.line + 1} contains itself.")
        if node.tag not in _TAGS:
            raise UserError(
                f"cannot parse {where}: the tag {node.tag.replace(_STANDARD, '!!')[:60]} on line "
                f"{node.start_mark.line + 1} is not supported; remove it."
            )
        sizes[id(node)] = None  # marks a node in progress
        total = 1
        if isinstance(node, yaml.MappingNode):
            _check_keys(node, where)
            total += sum(size(key) + size(value) for key, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            total += sum(size(item) for item in node.value)
        if total > limit:
            raise UserError(
                f"cannot parse {where}: its aliases expand to more than {limit:,} values; remove the aliases."
            )
        sizes[id(node)] = total
        return total

    size(root)


def _check_keys(node: yaml.MappingNode, where: str) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        name = str(key.value) if isinstance(key, yaml.ScalarNode) and key.tag in _KEY_TAGS else None
        if name is None:
            raise UserError(f"cannot parse {where}: the key on line {key.start_mark.line + 1} is not a plain string.")
        if name in seen:
            raise UserError(
                f"cannot parse {where}: line {key.start_mark.line + 1} repeats the key {name!r}; give it once."
            )
        seen.add(name)
