"""Decoders for bytes that somebody else may have made: bounded before they allocate, ValueError for all that is wrong.

What a decoder allocates is at most a fixed multiple of the bytes that it was given, or one of the bounds here.
"""

import io
import json
import math
import struct
import zlib
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pictures

MAX_PIXELS = 2**26
"""Of an image or a mask: 8192 x 8192."""
MAX_JSON_BYTES = 2**24
MAX_MEMBER_BYTES = 2**28
MAX_SAMPLES = 100_000
"""Of a shard; recipes allow no larger ones."""
MAX_MEMBERS = 16
"""Of a sample."""
MAX_OBJECTS = 10_000
"""Of a sample."""


def decode_json(data: bytes) -> Any:
    """Plain data; ValueError where it is too large, nested too deeply, no JSON, or holds NaN or an infinity."""
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"the JSON has {len(data)} bytes, at most {MAX_JSON_BYTES} are read")
    try:
        return json.loads(data, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def open_picture(data: bytes, form: str) -> Pictures.Image:
    """A picture whose header alone has been read; `form` is "JPEG" or "PNG". ValueError for another form or size."""
    if len(data) > MAX_MEMBER_BYTES:
        raise ValueError(f"the picture has {len(data)} bytes, at most {MAX_MEMBER_BYTES} are read")
    try:
        picture = Pictures.open(io.BytesIO(data), formats=(form,))
    except Pictures.DecompressionBombError:
        raise ValueError(f"the picture has more than the {MAX_PIXELS} pixels that are read") from None
    except (OSError, SyntaxError, struct.error, zlib.error, EOFError) as error:
        raise ValueError(f"no readable {form}") from error
    width, height = picture.size
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(f"the picture is {width} x {height}, at most {MAX_PIXELS} pixels are read")
    return picture


def load_picture(data: bytes, form: str) -> Pictures.Image:
    """A decoded picture; ValueError where it is cut off or broken."""
    picture = open_picture(data, form)
    try:
        picture.load()
    except (OSError, SyntaxError, struct.error, zlib.error, EOFError) as error:
        raise ValueError(f"the {form} is cut off or broken: {error}") from error
    return picture


def decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    """uint8 RGB (height, width, 3)."""
    return np.asarray(load_picture(data, "JPEG").convert("RGB"))


def decode_array(data: bytes) -> NDArray[np.float16]:
    """float16 (C, h, w) of numpy's own file; ValueError for any other array, and where bytes are missing."""
    stream = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("not of version 1.0")
        shape, fortran, kind = np.lib.format.read_array_header_1_0(stream)
    except (ValueError, SyntaxError, TypeError, OverflowError) as error:
        raise ValueError(f"no readable array: {str(error).splitlines()[0]}") from error
    if kind != np.float16 or len(shape) != 3 or fortran or min(shape) < 1:
        raise ValueError(f"the array is {kind} {shape}, not float16 (C, h, w)")
    if 2 * math.prod(shape) != len(data) - stream.tell():
        raise ValueError(f"an array of {shape} has {2 * math.prod(shape)} bytes, not {len(data) - stream.tell()}")
    return np.frombuffer(data, np.float16, offset=stream.tell()).reshape(shape).copy()
