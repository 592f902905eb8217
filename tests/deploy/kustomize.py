"""The part of kustomize that jobs/kuberay uses, so that tests see the rendered objects without its binary.

`make test-cluster` compares its output with that of kustomize itself. Everything else is rejected.
"""

import copy
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
_KNOWN = {
    "apiVersion", "kind", "namespace", "labels", "resources", "components", "images", "patches", "configMapGenerator",
    "generatorOptions",
}  # fmt: skip


def render(folder: Path) -> list[Object]:
    """The objects of a kustomization."""
    return _apply(folder, [])


def _apply(folder: Path, given: list[Object]) -> list[Object]:
    file = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(file) <= _KNOWN, set(file) - _KNOWN
    objects = [*given]
    for name in file.get("resources", []):
        path = folder / name
        objects += render(path) if path.is_dir() else _documents(path)
    objects += [_config_map(folder, entry) for entry in file.get("configMapGenerator", [])]
    for name in file.get("components", []):
        objects = _apply(folder / name, objects)
    for patch in file.get("patches", []):
        objects = _patched(objects, patch, folder)
    for entry in objects:
        for labels in file.get("labels", []):
            assert set(labels) == {"pairs"}
            entry["metadata"].setdefault("labels", {}).update(labels["pairs"])
        if "namespace" in file:
            entry["metadata"]["namespace"] = file["namespace"]
            for subject in entry.get("subjects", []):
                subject["namespace"] = file["namespace"]
        for image in file.get("images", []):
            _set_image(entry, image)
    return objects


def _documents(path: Path) -> list[Object]:
    return [copy.deepcopy(document) for document in yaml.safe_load_all(path.read_text())]


def _config_map(folder: Path, entry: Object) -> Object:
    data = {name: (folder / name).read_text() for name in entry["files"]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": entry["name"]}, "data": data}


def _patched(objects: list[Object], patch: Object, folder: Path) -> list[Object]:
    text = patch["patch"] if "patch" in patch else (folder / patch["path"]).read_text()
    operations = yaml.safe_load(text)
    if isinstance(operations, dict):
        assert operations["$patch"] == "delete"
        kept = [entry for entry in objects if not _is(entry, operations["kind"], operations["metadata"]["name"])]
        assert len(kept) == len(objects) - 1, operations
        return kept
    (target,) = [entry for entry in objects if _is(entry, patch["target"]["kind"], patch["target"]["name"])]
    for operation in operations:
        _operate(target, operation)
    return objects


def _is(entry: Object, kind: str, name: str) -> bool:
    return (entry["kind"], entry["metadata"]["name"]) == (kind, name)


def _operate(target: Any, operation: Object) -> None:
    """One operation of a JSON patch (RFC 6902)."""
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
    for part in parents:
        target = target[int(part)] if isinstance(target, list) else target[part]
    verb, value = operation["op"], copy.deepcopy(operation.get("value"))
    if verb == "add" and isinstance(target, list):
        assert last == "-"
        target.append(value)
        return
    assert verb in ("add", "replace", "remove")
    assert verb == "add" or last in target, operation
    if verb == "remove":
        del target[last]
    else:
        target[last] = value


def _set_image(part: Any, image: Object) -> None:
    """Replace an image in every list of containers, wherever it is."""
    if isinstance(part, list):
        for entry in part:
            _set_image(entry, image)
    elif isinstance(part, dict):
        for name, entry in part.items():
            if name in ("containers", "initContainers"):
                for container in entry:
                    if container["image"] == image["name"]:
                        container["image"] = f"{image['newName']}:{image['newTag']}"
            _set_image(entry, image)
