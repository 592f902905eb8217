"""Decoders for untrusted bytes. They check sizes before allocating and raise ValueError for any invalid input.

A decoder allocates at most a fixed multiple of its input, or one of the limits below.
"""

import io
import json
import math
import struct
import tokenize
import zlib
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from factory.errors import one_line

MAX_PIXELS = 2**26
"""Per image or mask: 8192 x 8192."""
MAX_JSON_BYTES = 2**24
MAX_MEMBER_BYTES = 2**28
MAX_SAMPLES = 100_000
"""Per shard; recipes do not allow larger ones."""
MAX_MEMBERS = 16
"""Per sample."""
MAX_OBJECTS = 10_000
"""Per sample."""


_ARRAY_ERRORS = (
    ValueError,
    SyntaxError,
    TypeError,
    OverflowError,
    RecursionError,
    MemoryError,
    tokenize.TokenError,
)
"""Errors of NumPy for a header, which it parses as a Python literal that may be incomplete or deeply nested."""


def decode_json(data: bytes) -> Any:
    """Parse JSON; raises ValueError if it is too large, too deeply nested, invalid, or has a number that is not finite.

    Every number can be converted to a float, so integers are limited as well.
    """
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"the JSON has {len(data)} bytes; the limit is {MAX_JSON_BYTES}")
    try:
        return json.loads(data, parse_constant=_finite, parse_float=_finite, parse_int=_integer)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text:.20} is not finite")
    return number


def _integer(text: str) -> int:
    _finite(text)
    return int(text)


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in the JSON file of a model, where infinities are allowed.

    Raises OSError if the file cannot be read, and ValueError if it is too large, too deeply nested or no JSON object.
    """
    with path.open("rb") as stream:
        data = stream.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"it has more than {MAX_JSON_BYTES} bytes")
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"it contains a {type(value).__name__}")
    return value


def is_text(value: object) -> TypeGuard[str]:
    """Whether a value is a string that can be written as UTF-8: strings of JSON may hold unpaired surrogates."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def open_image(data: bytes, kind: str) -> Image.Image:
    """Read an image's header only; `kind` is "JPEG" or "PNG". Raises ValueError for another format or a bad size."""
    if len(data) > MAX_MEMBER_BYTES:
        raise ValueError(f"the image has {len(data)} bytes; the limit is {MAX_MEMBER_BYTES}")
    try:
        image = Image.open(io.BytesIO(data), formats=(kind,))
    except Image.DecompressionBombError:
        raise ValueError(f"the image has more than {MAX_PIXELS} pixels, which is the limit") from None
    except (OSError, SyntaxError, struct.error, zlib.error, EOFError) as error:
        raise ValueError(f"not a readable {kind}") from error
    width, height = image.size
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(f"the image is {width} x {height}; the limit is {MAX_PIXELS} pixels")
    return image


def load_image(data: bytes, kind: str) -> Image.Image:
    """Decode an image; raises ValueError if it is truncated or corrupt."""
    image = open_image(data, kind)
    try:
        image.load()
    except (OSError, SyntaxError, struct.error, zlib.error, EOFError) as error:
        raise ValueError(f"the {kind} is truncated or corrupt: {error}") from error
    return image


def decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    """Decode a JPEG to uint8 RGB (height, width, 3)."""
    return np.array(load_image(data, "JPEG").convert("RGB"))  # a copy: the memory of an image is read-only


def decode_array(data: bytes) -> NDArray[np.float16]:
    """Decode a .npy file to float16 (C, h, w); raises ValueError for any other array or a truncated file."""
    stream = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("its format version is not 1.0")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except _ARRAY_ERRORS as error:
        raise ValueError(f"not a readable array: {one_line(error)}") from error
    if dtype != np.float16 or len(shape) != 3 or fortran or min(shape) < 1:
        raise ValueError(f"the array is {dtype} {shape}; expected float16 (C, h, w)")
    if 2 * math.prod(shape) != len(data) - stream.tell():
        raise ValueError(f"an array of shape {shape} has {2 * math.prod(shape)} bytes, got {len(data) - stream.tell()}")
    return np.frombuffer(data, np.float16, offset=stream.tell()).reshape(shape).copy()
