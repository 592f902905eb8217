"""The tar of a shard: USTAR, fixed times and owners, members sorted; so equal samples give equal files."""

import io
import tarfile
from collections.abc import Iterator, Sequence

from factory.shards.encode import ORACLE_SUFFIXES, SUFFIXES, EncodedSample


def pack(samples: Sequence[EncodedSample]) -> bytes:
    """The tar of the samples, which must come in the order of their keys."""
    keys = [sample.key for sample in samples]
    assert keys == sorted(set(keys)), "keys come sorted and once"
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            assert tuple(sample.members) in (SUFFIXES, ORACLE_SUFFIXES)
            assert "." not in sample.key
            for suffix, data in sample.members.items():
                member = tarfile.TarInfo(f"{sample.key}.{suffix}")
                member.size, member.mode = len(data), 0o644
                tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def unpack(data: bytes) -> Iterator[EncodedSample]:
    """The samples of a tar, in its order; ValueError where it is cut off, foreign or out of order.

    Members of one sample lie side by side; any member that a sample has is kept, whatever its suffix.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            yield from _group(tar)
    except tarfile.TarError as error:
        raise ValueError(f"no readable tar: {error}") from error
    if not data.endswith(bytes(1024)):
        raise ValueError("the tar is cut off: its end mark is missing")


def _group(tar: tarfile.TarFile) -> Iterator[EncodedSample]:
    current, members = "", dict[str, bytes]()
    for entry in tar:
        key, _, suffix = entry.name.partition(".")
        stream = tar.extractfile(entry)
        if stream is None:
            raise ValueError(f"{entry.name} is no file")
        if key != current and members:
            yield EncodedSample(current, members)
            members = {}
        current = key
        if suffix in members:
            raise ValueError(f"{entry.name} is there twice")
        members[suffix] = stream.read()
    if members:
        yield EncodedSample(current, members)
