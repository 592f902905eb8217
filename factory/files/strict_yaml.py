"""YAML for handwritten files: scalars stay text, and the size of the document is limited."""

import re
from typing import Any

import yaml

from factory.errors import UserError

MAX_YAML_NODES = 200_000
"""Limit on values after expanding aliases; a few lines of nested aliases can expand to billions."""


class _PlainLoader(yaml.SafeLoader):
    """YAML loader that keeps all scalars as text, except true, false and null.

    YAML 1.1 reads `2:1` as 121 (base 60), `010` as 8 and `no` as false, which is not what the author meant.
    """


_PlainLoader.yaml_implicit_resolvers = {}
_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_PlainLoader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])
_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]
)


def parse_plain_yaml(text: str, where: str) -> Any:
    """Parse YAML into dicts, lists, strings, booleans and None; numbers stay text.

    Raises UserError for invalid YAML, duplicate keys in a mapping, and documents that are too deeply nested or expand
    too much through aliases.
    """
    loader = _PlainLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_node(node, where)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise UserError(f"cannot parse {where}: {' '.join(str(error).split())}.") from error
    except RecursionError as error:
        raise UserError(f"cannot parse {where}: it is nested too deeply.") from error
    finally:
        loader.dispose()


def _check_node(root: yaml.Node, where: str) -> None:
    """Raise UserError for duplicate keys, recursive aliases, and too many values after alias expansion."""
    sizes: dict[int, int | None] = {}

    def size(node: yaml.Node) -> int:
        known = sizes.get(id(node), 0)
        if known:
            return known
        if known is None:
            raise UserError(f"cannot parse {where}: the value on line {node.start_mark.line + 1} contains itself.")
        sizes[id(node)] = None  # marks a node in progress
        total = 1
        if isinstance(node, yaml.MappingNode):
            _check_keys(node, where)
            total += sum(size(key) + size(value) for key, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            total += sum(size(item) for item in node.value)
        if total > MAX_YAML_NODES:
            raise UserError(
                f"cannot parse {where}: its aliases expand to more than {MAX_YAML_NODES:,} values; remove the aliases."
            )
        sizes[id(node)] = total
        return total

    size(root)


def _check_keys(node: yaml.MappingNode, where: str) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        name = str(key.value) if isinstance(key, yaml.ScalarNode) else None
        if name is None:
            raise UserError(f"cannot parse {where}: the key on line {key.start_mark.line + 1} is not a plain string.")
        if name in seen:
            raise UserError(
                f"cannot parse {where}: line {key.start_mark.line + 1} repeats the key {name!r}; give it once."
            )
        seen.add(name)
