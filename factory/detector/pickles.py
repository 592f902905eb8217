"""Reads pickles of NumPy arrays, such as those of detectron2's model zoo, without running code from the file.

A pickle is a program: `pickle.load` calls the functions that the file names. This reader accepts only plain containers,
numbers, text and the names with which NumPy pickles an array. The file cannot call functions of NumPy: it builds
placeholders, which become arrays after their type and size have been checked.
"""

import io
import math
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from factory.errors import one_line

_CODES = frozenset({"b1", *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)), "f2", "f4", "f8"})
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")


class ForbiddenPickleError(ValueError):
    """The file contains something other than arrays, containers, numbers and text, or is not a complete pickle."""


def read_arrays(path: Path) -> dict[str, Any]:
    """The pickle's dictionary, with read-only arrays at its top level and under "model" and "blobs".

    Raises ForbiddenPickleError if it names anything else, or declares arrays larger than the file. Text of Python 2 is
    decoded as Latin-1, which NumPy's old pickles require.
    """
    try:
        content = _ArrayUnpickler(path.read_bytes()).load()
    except ForbiddenPickleError:
        raise
    except Exception as error:  # a broken pickle can raise almost any exception
        raise ForbiddenPickleError(f"it is not a complete pickle: {one_line(error, 120)}") from error
    if not isinstance(content, dict):
        raise ForbiddenPickleError(f"it is a {type(content).__name__.strip('_')}, not a dictionary of weights")
    content = _arrays(content)
    nested = {name: _arrays(content[name]) for name in ("model", "blobs") if isinstance(content.get(name), dict)}
    return {**content, **nested}


def _arrays(content: dict[Any, Any]) -> dict[str, Any]:
    return {str(name): value.array if isinstance(value, _Array) else value for name, value in content.items()}


class _DType:
    """A NumPy type by its code, such as "f4"; `__setstate__` sets the byte order."""

    def __init__(self, code: str, *_: Any) -> None:
        if code not in _CODES:
            raise ForbiddenPickleError(f"it has arrays of the type {str(code)[:20]!r}")
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise ForbiddenPickleError("it has an array of an unknown byte order")
        self.order = state[1]


class _Array:
    """Placeholder for an array; `__setstate__` sets its content."""

    def __init__(self, make: Callable[..., "np.ndarray[Any, Any]"]) -> None:
        self._make = make
        self.array: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self.array = self._make(raw, dtype, shape, "F" if fortran else "C")


class _Dict(dict[Any, Any]):
    """An OrderedDict; additional attributes are dropped."""

    def __setstate__(self, state: object) -> None:
        pass


class _ArrayUnpickler(pickle._Unpickler):
    """Based on the standard library's Python unpickler: the C one allocates a memo of any size that a file names."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        # Arrays may share content within a file, so a small file could fill the memory. Every byte counts for each
        # array that contains it, and once more if an old Python wrote it as text.
        self._budget = 2 * len(data)
        self._admitted: dict[tuple[str, str], Any] = {
            ("numpy", "ndarray"): None,  # occurs only as an argument of _reconstruct
            ("numpy", "dtype"): _DType,
            ("collections", "OrderedDict"): _Dict,
            ("_codecs", "encode"): self._encode,
            ("__builtin__", "bytes"): lambda: b"",  # empty bytes, as pickled for Python 2
            **{(module, "_reconstruct"): lambda *_: _Array(self._array) for module in _MULTIARRAY},
            **{(module, "scalar"): lambda dtype, raw: self._array(raw, dtype, ())[()] for module in _MULTIARRAY},
            **{(module, "_frombuffer"): self._array for module in _NUMERIC},
        }

    def find_class(self, module: str, name: str) -> Any:
        """Resolve a name in the file; it can call only what this returns."""
        if (module, name) not in self._admitted:
            named = " ".join(f"{module}.{name}".split())[:100]
            raise ForbiddenPickleError(f"it refers to {named}, which could run code")
        return self._admitted[module, name]

    def _load_bytearray8(self: Any) -> None:
        # The standard library allocates the declared size before it reads; this reads what the file has, as bytes.
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(self.read(size))

    dispatch[pickle.BYTEARRAY8[0]] = _load_bytearray8

    def _array(self, raw: Any, dtype: Any, shape: Any, order: Any = "C") -> "np.ndarray[Any, Any]":
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        if not isinstance(raw, bytes) or not isinstance(dtype, _DType) or order not in ("C", "F"):
            raise ForbiddenPickleError("it has an array that is not plain numbers")
        numpy_type = np.dtype(dtype.order + dtype.code)
        fits = all(isinstance(size, int) and size >= 0 for size in sizes) and (
            len(raw) == numpy_type.itemsize * math.prod(sizes)
        )
        if not fits:
            raise ForbiddenPickleError("it has an array whose size differs from that of its content")
        self._spend(len(raw))
        return np.frombuffer(raw, numpy_type).reshape(sizes, order=order)

    def _encode(self, text: str, encoding: str = "latin1") -> bytes:
        if encoding not in ("latin1", "latin-1"):
            raise ForbiddenPickleError(f"it has bytes in the encoding {str(encoding)[:20]!r}")
        self._spend(len(text))
        return text.encode("latin1")

    def _spend(self, size: int) -> None:
        self._budget -= size
        if self._budget < 0:
            raise ForbiddenPickleError("its arrays are larger than the file")
