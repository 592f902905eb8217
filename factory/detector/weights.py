"""Files of weights that someone else made: read without running code, and accounted for tensor by tensor."""

import hashlib
import pickle
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

State = dict[str, Tensor]
_MOST_LABELS = 1 << 20


@dataclass(frozen=True)
class WeightFile:
    """A file of weights that a detector's name gives after the @.

    `labels` are the classes in the order of their numbers, without background, where a list lies beside the weights:
    `weights.pth` has `weights.classes.txt`, one name a line.
    """

    path: Path
    labels: tuple[str, ...] | None

    @property
    def digest(self) -> str:
        """40 hex digits over the file and, where there is one, its list of classes."""
        with self.path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        if self.labels is not None:
            content = hashlib.sha256("\n".join((content, *self.labels)).encode()).hexdigest()
        return content[:40]


def split_name(name: str, prefix: str) -> tuple[str, WeightFile | None]:
    """`NAME` or `NAME@FILE`: the model, and the file with its path made absolute.

    UserError where the file is missing, empty or no file, or where its list of classes cannot be read.
    """
    model, at, file = name.partition("@")
    if not at:
        return model, None
    path = Path(file).expanduser().absolute()
    if not file or not path.is_file():
        raise UserError(f"there is no file of weights {file}; give {prefix}{model}@FILE, or leave out @FILE.")
    if path.stat().st_size == 0:
        raise UserError(f"the file of weights {path} is empty; copy it again.")
    return model, WeightFile(path, _labels_beside(path))


def _labels_beside(path: Path) -> tuple[str, ...] | None:
    place = path.with_suffix(".classes.txt")
    if not place.is_file():
        return None
    try:
        with place.open("rb") as stream:
            text = stream.read(_MOST_LABELS + 1).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"the list of classes {place} is not UTF-8 ({error.reason}); save it as UTF-8.") from error
    labels = [line.strip() for line in text.strip().splitlines()]
    if labels and labels[0] in NO_CLASSES - {"N/A"}:
        labels = labels[1:]  # background is number 0 whether it is listed or not
    named = [label for label in labels if label not in NO_CLASSES]
    if len(text) > _MOST_LABELS or not named or "" in labels or len(set(named)) < len(named):
        raise UserError(
            f"the list of classes {place} must hold one class a line, in the order of their numbers, none twice and no "
            f"line empty; write N/A for a number without a class."
        )
    return tuple(labels)


def read_state(path: Path, named: str) -> tuple[State, str]:
    """The tensors of a file by name, and who wrote them: "detectron2", "caffe2" or "torch".

    `.pkl` holds NumPy arrays, `.safetensors` and all else tensors of torch, by themselves or under "model" or
    "state_dict". UserError, which speaks of the file as `named`, where it is truncated, of another kind, or would run
    code.
    """
    if path.suffix == ".pkl":
        return _pickled(path, named)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            _check_archive(path)
            found = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # truncated and foreign files fail in many ways, each with an exception of its own
        raise UserError(_unreadable(named, _reason(error))) from error
    for key in ("model", "state_dict"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found or not all(map(_dense, found.values())):
        raise UserError(_unreadable(named, "it holds no dictionary of tensors"))
    return {str(name).removeprefix("module."): value for name, value in found.items()}, "torch"


def _pickled(path: Path, named: str) -> tuple[State, str]:
    """detectron2's zoo has {"model": arrays, "__author__": ...}; Caffe2's have the arrays at the top or in "blobs"."""
    try:
        found = read_arrays(path)
    except ForbiddenPickleError as error:
        raise UserError(_unreadable(named, str(error))) from error
    if "model" in found and "__author__" in found:
        arrays, writer = found["model"], "matching" if found.get("matching_heuristics") else "detectron2"
    else:
        arrays, writer = found.get("blobs", found), "caffe2"
    if not isinstance(arrays, dict):
        raise UserError(_unreadable(named, "it holds no dictionary of arrays"))
    arrays = {name: value for name, value in arrays.items() if not name.endswith("_momentum")}
    if not arrays or not all(isinstance(value, np.ndarray | np.generic) for value in arrays.values()):
        raise UserError(_unreadable(named, "it holds no dictionary of arrays"))
    return {name: _tensor(value) for name, value in arrays.items()}, writer


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array, np.asarray(array).dtype.newbyteorder("="), order="C"))


def _dense(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized


def _check_archive(path: Path) -> None:
    """torch stores tensors as they are; a compressed member could unpack to more than the memory holds."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(row.compress_type != zipfile.ZIP_STORED for row in archive.infolist()):
                raise ValueError("its members are compressed, as torch never writes them")


def _unreadable(named: str, why: str) -> str:
    return (
        f"{named} cannot be used ({why}); give an undamaged file that holds nothing but tensors, as "
        f"torch.save(model.state_dict(), FILE) writes it."
    )


def _reason(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            return "it holds objects other than tensors, which could run code"
        return "it is no file of torch"
    first = " ".join(str(error).split("\n")[0].split())
    return f"{first[:160] or type(error).__name__}"


def fill(model: nn.Module, state: Mapping[str, Tensor], named: str, may_lack: Collection[str] = ()) -> None:
    """Copy `state` into the model, all of it into all of it.

    UserError where a tensor is missing, unexpected, of another shape or not finite: a model that is only partly loaded
    answers with the noise of its random weights. Names that end in one of `may_lack` may be missing.
    """
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in state and not name.endswith(tuple(may_lack))]
    unexpected = [name for name in state if name not in wanted]
    other = [name for name in wanted if name in state and state[name].shape != wanted[name].shape]
    faults = [("are missing", missing), ("are unknown", unexpected), ("have another shape", other)]
    told = "; ".join(f"{len(names)} {what}, as {names[0]}" for what, names in faults if names)
    if told:
        raise UserError(
            f"{named} does not fit the model, which has {len(wanted)} tensors: {told}. Give the weights of this very "
            f"model."
        )
    broken = next((name for name, value in state.items() if not bool(torch.isfinite(value).all())), None)
    if broken is not None:
        raise UserError(f"{named} is damaged: {broken} holds NaN or infinite values. Copy or train it again.")
    model.load_state_dict(dict(state), strict=False)
