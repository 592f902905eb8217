"""YAML of files that people write by hand, with limits: values stay as they are written."""

import re
from typing import Any

import yaml

from factory.errors import UserError

MAX_YAML_NODES = 200_000
"""Values of a YAML file with every alias written out; a few lines of nested aliases can stand for billions."""


class _PlainLoader(yaml.SafeLoader):
    """YAML whose scalars stay as they are written, but for true, false and null.

    YAML 1.1 reads `2:1` as 121 (base 60), `010` as 8 and `no` as false. An option is to be what its line says.
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
    """YAML as dicts, lists, strings, booleans and None; numbers stay text.

    UserError for what is no YAML, for a key that comes twice in one mapping, and for a document that is nested too
    deeply or grows through aliases.
    """
    loader = _PlainLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_node(node, where)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise UserError(f"cannot read {where}: {' '.join(str(error).split())}.") from error
    except RecursionError as error:
        raise UserError(f"cannot read {where}: it is nested too deeply; a few levels are enough.") from error
    finally:
        loader.dispose()


def _check_node(root: yaml.Node, where: str) -> None:
    """Counts what every alias stands for, and refuses keys that come twice."""
    sizes: dict[int, int | None] = {}

    def size(node: yaml.Node) -> int:
        found = sizes.get(id(node), 0)
        if found:
            return found
        if found is None:
            raise UserError(f"cannot read {where}: a value of line {node.start_mark.line + 1} contains itself.")
        sizes[id(node)] = None
        total = 1
        if isinstance(node, yaml.MappingNode):
            _check_keys(node, where)
            total += sum(size(key) + size(value) for key, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            total += sum(size(item) for item in node.value)
        if total > MAX_YAML_NODES:
            raise UserError(
                f"cannot read {where}: its aliases stand for more than {MAX_YAML_NODES:,} values; write it without."
            )
        sizes[id(node)] = total
        return total

    size(root)


def _check_keys(node: yaml.MappingNode, where: str) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        name = str(key.value) if isinstance(key, yaml.ScalarNode) else None
        if name is None:
            raise UserError(f"cannot read {where}: a key in line {key.start_mark.line + 1} is no plain word.")
        if name in seen:
            raise UserError(
                f"cannot read {where}: line {key.start_mark.line + 1} gives {name!r} a second time; give it once."
            )
        seen.add(name)
