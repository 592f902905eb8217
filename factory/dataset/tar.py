"""The tar of a shard: USTAR, fixed times and owners, members sorted; so equal samples give equal files."""

import io
import tarfile
from collections.abc import Iterator, Sequence

from factory.config.keys import check_key, split_member
from factory.dataset.encode import ORACLE_SUFFIXES, SUFFIXES, EncodedSample
from factory.files.decode import MAX_MEMBER_BYTES, MAX_MEMBERS, MAX_SAMPLES

_BLOCK = 512
_PLAIN = (b"0", b"\0")
"""The types of a plain file's header."""


def pack(samples: Sequence[EncodedSample]) -> bytes:
    """The tar of the samples, which must come in the order of their keys."""
    keys = [check_key(sample.key) for sample in samples]
    assert keys == sorted(set(keys)), "keys come sorted and once"
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            assert tuple(sample.members) in (SUFFIXES, ORACLE_SUFFIXES)
            for suffix, data in sample.members.items():
                member = tarfile.TarInfo(f"{sample.key}.{suffix}")
                member.size, member.mode = len(data), 0o644
                tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def unpack(data: bytes) -> Iterator[EncodedSample]:
    """The samples of a tar, in its order; ValueError where it is cut off, foreign or out of order.

    Members of one sample lie side by side; any member that a sample has is kept, whatever its suffix. Only what `pack`
    writes is read: plain files named by a key, no links, no sparse files, no extended headers.
    """
    current, members, count = "", dict[str, bytes](), 0
    for name, content in _files(data):
        key, suffix = split_member(name)
        if key != current:
            if members:
                yield EncodedSample(current, members)
            if key < current:
                raise ValueError(f"{name} comes after {current}, keys ascend")
            current, members, count = key, {}, count + 1
        if suffix in members:
            raise ValueError(f"{name} is there twice")
        members[suffix] = content
        if len(members) > MAX_MEMBERS or count > MAX_SAMPLES:
            raise ValueError(f"more than {MAX_SAMPLES} samples, or {MAX_MEMBERS} members of one")
    if members:
        yield EncodedSample(current, members)


def _files(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file, up to the end mark of two empty blocks.

    Python's `tarfile` is not used here: it follows links, expands sparse files, and before 3.11.14 never returned from
    a header with a negative size (CVE-2025-8194).
    """
    place = 0
    while any(header := data[place : place + _BLOCK]):
        name, size = _header(header)
        place += _BLOCK
        if place + size > len(data):
            raise ValueError(f"the tar is cut off within {name}")
        yield name, data[place : place + size]
        place += -(-size // _BLOCK) * _BLOCK
    if len(data) < place + 2 * _BLOCK or data[place:].strip(b"\0"):
        raise ValueError("the tar is cut off: its end mark is missing")


def _header(header: bytes) -> tuple[str, int]:
    """(name, size) of a member; ValueError for all but a plain file."""
    if len(header) < _BLOCK:
        raise ValueError("the tar is cut off within a header")
    try:
        name = header[:100].rstrip(b"\0").decode("ascii")
        size, checksum = (int(header[a:b].strip(b" \0") or b"x", 8) for a, b in ((124, 136), (148, 156)))
    except ValueError:
        raise ValueError("no readable tar: a header is broken") from None
    if checksum != sum(header[:148]) + 8 * ord(" ") + sum(header[156:]):
        raise ValueError("no readable tar: a header's checksum is wrong")
    if header[156:157] not in _PLAIN or header[257:262] != b"ustar" or header[345] != 0:
        raise ValueError(f"{name[:60]!r} is no plain file; a shard holds nothing else")
    if not 0 <= size <= MAX_MEMBER_BYTES:
        raise ValueError(f"{name[:60]!r} has {size} bytes, a member has at most {MAX_MEMBER_BYTES}")
    return name, size
