"""Weight files of third parties, read without running code; every tensor is checked."""

import hashlib
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from factory.detector.labels import NO_CLASSES
from factory.detector.pickles import ForbiddenPickleError, read_arrays
from factory.errors import UserError
from factory.files.digest import sha256
from factory.files.paths import expanded
from factory.files.torch_files import unreadable_because

State = dict[str, Tensor]
_MAX_LIST = 1 << 20


@dataclass(frozen=True)
class WeightFile:
    """The weight file that a detector's name gives after the @.

    `labels` are the classes in the order of their ids, without background, if there is a list next to the weights:
    `weights.classes.txt` next to `weights.pth`, one name per line.
    """

    path: Path
    labels: tuple[str, ...] | None

    @property
    def digest(self) -> str:
        """40 hex digits over the file and its list of classes, if any."""
        content = sha256(self.path)
        if self.labels is not None:
            content = hashlib.sha256("\n".join((content, *self.labels)).encode()).hexdigest()
        return content[:40]


def split_name(name: str, prefix: str) -> tuple[str, WeightFile | None]:
    """Split `NAME` or `NAME@FILE` into the model and the weight file with an absolute path.

    Raises UserError if the file is missing or empty, or if its list of classes cannot be read.
    """
    model, separator, file = name.partition("@")
    if not separator:
        return model, None
    path = expanded(file).absolute()
    if not file or not path.is_file():
        raise UserError(f"there is no weight file {file}; give the path of an existing file in {prefix}{model}@FILE.")
    if path.stat().st_size == 0:
        raise UserError(f"the weight file {path} is empty; copy it again.")
    return model, WeightFile(path, _labels_beside(path))


def _labels_beside(path: Path) -> tuple[str, ...] | None:
    list_path = path.with_suffix(".classes.txt")
    if not list_path.is_file():
        return None
    try:
        with list_path.open("rb") as stream:
            text = stream.read(_MAX_LIST + 1).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"the list of classes {list_path} is not UTF-8 ({error.reason}); save it as UTF-8.") from error
    labels = [line.strip() for line in text.strip().splitlines()]
    if labels and labels[0] in NO_CLASSES - {"N/A"}:
        labels = labels[1:]  # background has id 0 whether it is listed or not
    named = [label for label in labels if label not in NO_CLASSES]
    if len(text) > _MAX_LIST or not named or "" in labels or len(set(named)) < len(named):
        raise UserError(
            f"the list of classes {list_path} must have one class per line in the order of the ids, without duplicates "
            f"and empty lines; write N/A for an id without a class."
        )
    return tuple(labels)


def read_state(path: Path, description: str) -> tuple[State, str]:
    """(tensors of a file by name, their writer): "detectron2", "matching", "caffe2" or "torch".

    `.pkl` files hold NumPy arrays; all others hold torch tensors, at the top level or under "model" or "state_dict".
    Raises UserError, which calls the file `description`, if it is truncated, of another kind, or would run code.
    """
    if path.suffix == ".pkl":
        return _pickled(path, description)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            check_archive(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # truncated or unrelated files raise many types of exceptions
        raise UserError(_unreadable(description, unreadable_because(error))) from error
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not all(map(_dense, content.values())):
        raise UserError(_unreadable(description, "it is not a dictionary of tensors"))
    return {str(name).removeprefix("module."): value for name, value in content.items()}, "torch"


def _pickled(path: Path, description: str) -> tuple[State, str]:
    """detectron2's zoo has {"model": arrays, "__author__": ...}; Caffe2's arrays are at the top level or in "blobs"."""
    try:
        content = read_arrays(path)
    except ForbiddenPickleError as error:
        raise UserError(_unreadable(description, str(error))) from error
    if "model" in content and "__author__" in content:
        arrays, writer = content["model"], "matching" if content.get("matching_heuristics") else "detectron2"
    else:
        arrays, writer = content.get("blobs", content), "caffe2"
    if not isinstance(arrays, dict):
        raise UserError(_unreadable(description, "it is not a dictionary of arrays"))
    arrays = {name: value for name, value in arrays.items() if not name.endswith("_momentum")}
    if not arrays or not all(isinstance(value, np.ndarray | np.generic) for value in arrays.values()):
        raise UserError(_unreadable(description, "it is not a dictionary of arrays"))
    return {name: _tensor(value) for name, value in arrays.items()}, writer


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array, np.asarray(array).dtype.newbyteorder("="), order="C"))


def _dense(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized


def check_archive(path: Path) -> None:
    """Reject compressed archives: torch never writes them, and they could unpack to more data than fits into memory."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("its members are compressed, which torch never does")


def _unreadable(description: str, reason: str) -> str:
    return (
        f"{description} cannot be used ({reason}); give an undamaged file that contains only tensors, as "
        f"torch.save(model.state_dict(), FILE) writes it."
    )


def fill(model: nn.Module, state: Mapping[str, Tensor], description: str, may_lack: Collection[str] = ()) -> None:
    """Load `state` into the model; both must have the same tensors.

    Raises UserError if a tensor is missing, unexpected, of another shape or not finite, because a partly loaded model
    would detect with random weights. Names that end in one of `may_lack` may be missing.
    """
    expected = model.state_dict()
    missing = [name for name in expected if name not in state and not name.endswith(tuple(may_lack))]
    unexpected = [name for name in state if name not in expected]
    mismatched = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    faults = [("are missing", missing), ("are unknown", unexpected), ("have another shape", mismatched)]
    differences = "; ".join(f"{len(names)} {what}, such as {names[0]}" for what, names in faults if names)
    if differences:
        raise UserError(
            f"{description} does not fit the model, which has {len(expected)} tensors: {differences}; give weights of "
            f"exactly this model."
        )
    broken = next((name for name, value in state.items() if not bool(torch.isfinite(value).all())), None)
    if broken is not None:
        raise UserError(f"{description} is damaged: {broken} contains NaN or infinity; copy or train it again.")
    model.load_state_dict(dict(state), strict=False)
