"""Read a pickle of NumPy arrays, as detectron2's model zoo has them, without letting it run code.

A pickle is a program: `pickle.load` calls whatever the file names. This reader knows plain containers, numbers, text
and the few names with which NumPy writes an array. None of NumPy's own functions is called by the file: it builds
placeholders, which become arrays once their type and size are checked.
"""

import io
import math
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

_CODES = frozenset({"b1", *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)), "f2", "f4", "f8"})
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")


class ForbiddenPickleError(ValueError):
    """The file names something other than arrays, containers, numbers and text, or is no complete pickle."""


def read_arrays(path: Path) -> dict[str, Any]:
    """The pickle's dictionary; arrays (read-only) at its top and under "model" and "blobs", the rest as it is.

    ForbiddenPickleError where it names anything else, or claims arrays that are larger than the file. Text of Python 2
    is read as Latin-1, as NumPy's old pickles need.
    """
    try:
        found = _ArrayUnpickler(path.read_bytes()).load()
    except ForbiddenPickleError:
        raise
    except Exception as error:  # a broken pickle fails in as many ways as there are opcodes
        said = " ".join(str(error).split()) or type(error).__name__
        raise ForbiddenPickleError(f"it is no complete pickle: {said[:120]}") from error
    if not isinstance(found, dict):
        raise ForbiddenPickleError(f"it holds a {type(found).__name__.strip('_')} and no dictionary of weights")
    found = _arrays(found)
    inner = {name: _arrays(found[name]) for name in ("model", "blobs") if isinstance(found.get(name), dict)}
    return {**found, **inner}


def _arrays(found: dict[Any, Any]) -> dict[str, Any]:
    return {str(name): value.array if isinstance(value, _Array) else value for name, value in found.items()}


class _DType:
    """A NumPy type by its code, as "f4"; `__setstate__` gives it the byte order."""

    def __init__(self, code: str, *_: Any) -> None:
        if code not in _CODES:
            raise ForbiddenPickleError(f"it has arrays of the type {str(code)[:20]!r}")
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise ForbiddenPickleError("it has an array of an unknown byte order")
        self.order = state[1]


class _Array:
    """An array that is being read; `__setstate__` gives it its content."""

    def __init__(self, make: Callable[..., "np.ndarray[Any, Any]"]) -> None:
        self._make = make
        self.array: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self.array = self._make(raw, dtype, shape, "F" if fortran else "C")


class _Dict(dict[Any, Any]):
    """An OrderedDict; the attributes that some have are dropped."""

    def __setstate__(self, state: object) -> None:
        pass


class _ArrayUnpickler(pickle._Unpickler):
    """The standard library's unpickler in Python: that in C allocates a memo as long as the file asks for."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        # Content may be shared within a file, so that a small file could fill the memory: every byte is counted when
        # it becomes part of an array, and once more where old Pythons wrote it as text.
        self._budget = 2 * len(data)
        self._admitted: dict[tuple[str, str], Any] = {
            ("numpy", "ndarray"): None,  # only ever an argument of _reconstruct
            ("numpy", "dtype"): _DType,
            ("collections", "OrderedDict"): _Dict,
            ("_codecs", "encode"): self._encode,
            ("__builtin__", "bytes"): lambda: b"",  # how no bytes are written for Python 2
            **{(module, "_reconstruct"): lambda *_: _Array(self._array) for module in _MULTIARRAY},
            **{(module, "scalar"): lambda dtype, raw: self._array(raw, dtype, ())[()] for module in _MULTIARRAY},
            **{(module, "_frombuffer"): self._array for module in _NUMERIC},
        }

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the file stands for; all that the file can call comes from here."""
        if (module, name) not in self._admitted:
            raise ForbiddenPickleError(" ".join(f"it names {module}.{name}".split())[:120])
        return self._admitted[module, name]

    def _load_bytearray8(self: Any) -> None:
        # As bytes, and no longer than the file: the standard library allocates first.
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(self.read(size))

    dispatch[pickle.BYTEARRAY8[0]] = _load_bytearray8

    def _array(self, raw: Any, dtype: Any, shape: Any, order: Any = "C") -> "np.ndarray[Any, Any]":
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        if not isinstance(raw, bytes) or not isinstance(dtype, _DType) or order not in ("C", "F"):
            raise ForbiddenPickleError("it has an array that is not plain numbers")
        kind = np.dtype(dtype.order + dtype.code)
        fits = all(isinstance(size, int) and size >= 0 for size in sizes) and (
            len(raw) == kind.itemsize * math.prod(sizes)
        )
        if not fits:
            raise ForbiddenPickleError("it has an array whose size is not that of its content")
        self._spend(len(raw))
        return np.frombuffer(raw, kind).reshape(sizes, order=order)

    def _encode(self, text: str, encoding: str = "latin1") -> bytes:
        if encoding not in ("latin1", "latin-1"):
            raise ForbiddenPickleError(f"it has bytes in the encoding {str(encoding)[:20]!r}")
        self._spend(len(text))
        return text.encode("latin1")

    def _spend(self, size: int) -> None:
        self._budget -= size
        if self._budget < 0:
            raise ForbiddenPickleError("its arrays are larger than the file")
