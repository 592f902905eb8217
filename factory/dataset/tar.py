"""The tar file of a shard: USTAR with fixed times and owners and sorted members, so equal samples give equal bytes."""

import io
import tarfile
from collections.abc import Iterator, Sequence

from factory.config.keys import check_key, split_member
from factory.dataset.encode import ORACLE_SUFFIXES, SUFFIXES, EncodedSample
from factory.files.decode import MAX_MEMBER_BYTES, MAX_MEMBERS, MAX_SAMPLES

_BLOCK = 512
_REGULAR_FILE = (b"0", b"\0")
"""Header types of a regular file."""


def pack(samples: Sequence[EncodedSample]) -> bytes:
    """Write samples as a tar; they must be sorted by key."""
    keys = [check_key(sample.key) for sample in samples]
    assert keys == sorted(set(keys)), "keys must be sorted and unique"
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
    """Read the samples of a tar in order; raises ValueError if it is truncated, foreign or out of order.

    The members of a sample must be adjacent; all of them are kept, regardless of their suffix. Only what `pack` writes
    is accepted: regular files named by a key, no links, no sparse files, no extended headers.
    """
    current, members, count = "", dict[str, bytes](), 0
    for name, content in _files(data):
        key, suffix = split_member(name)
        if key != current:
            if members:
                yield EncodedSample(current, members)
            if key < current:
                raise ValueError(f"{name} comes after {current}; keys must be ascending")
            current, members, count = key, {}, count + 1
        if suffix in members:
            raise ValueError(f"{name} is duplicated")
        members[suffix] = content
        if len(members) > MAX_MEMBERS or count > MAX_SAMPLES:
            raise ValueError(f"more than {MAX_SAMPLES} samples, or more than {MAX_MEMBERS} members in a sample")
    if members:
        yield EncodedSample(current, members)


def _files(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file, up to the end marker of two empty blocks.

    Python's `tarfile` is not used for reading: it follows links, expands sparse files, and before 3.11.14 loops forever
    on a header with a negative size (CVE-2025-8194).
    """
    offset = 0
    while any(header := data[offset : offset + _BLOCK]):
        name, size = _header(header)
        offset += _BLOCK
        if offset + size > len(data):
            raise ValueError(f"the tar is truncated within {name}")
        yield name, data[offset : offset + size]
        offset += -(-size // _BLOCK) * _BLOCK
    if data[offset:].strip(b"\0"):
        raise ValueError("the tar contains data after its end marker")
    if len(data) < offset + 2 * _BLOCK:
        raise ValueError("the tar is truncated: its end marker is missing")


def _header(header: bytes) -> tuple[str, int]:
    """(name, size) of a member; raises ValueError for anything but a regular file."""
    if len(header) < _BLOCK:
        raise ValueError("the tar is truncated within a header")
    try:
        name = header[:100].rstrip(b"\0").decode("ascii")
        size, checksum = (int(header[a:b].strip(b" \0") or b"x", 8) for a, b in ((124, 136), (148, 156)))
    except ValueError:
        raise ValueError("not a readable tar: a header is corrupt") from None
    if checksum != sum(header[:148]) + 8 * ord(" ") + sum(header[156:]):
        raise ValueError("not a readable tar: the checksum of a header is wrong")
    if header[156:157] not in _REGULAR_FILE or header[257:262] != b"ustar" or header[345] != 0:
        raise ValueError(f"{name[:60]!r} is not a regular file; a shard may not contain anything else")
    if not 0 <= size <= MAX_MEMBER_BYTES:
        raise ValueError(f"{name[:60]!r} has {size} bytes; the limit is {MAX_MEMBER_BYTES}")
    return name, size
