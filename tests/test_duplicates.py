"""Duplicate images of a dataset: all of them are found, with little memory."""

import hashlib
import tracemalloc

from factory.config.keys import key_of
from factory.dataset.duplicates import DIGEST_BYTES, Images


def digest(content: int) -> bytes:
    return hashlib.sha256(bytes([content % 256, content // 256])).digest()[:DIGEST_BYTES]


def test_duplicates_are_found_across_shards_in_order() -> None:
    images = Images()
    assert list(images.duplicates()) == []
    images.add(3, [(digest(1), key_of(8)), (digest(2), key_of(9))])
    images.add(4, [])
    images.add(5, [(digest(3), key_of(11)), (digest(1), key_of(12)), (digest(1), key_of(8))])
    images.add(6, [(digest(2)[:8] + digest(4)[8:], key_of(13)), (digest(1), key_of(14)), (digest(2), key_of(15))])
    images.add(7, [(digest(3), key_of(16))])
    assert list(images.duplicates()) == [
        (5, "000000012 has the same image as 000000008"),
        (6, "000000014 has the same image as 000000008"),
        (6, "000000015 has the same image as 000000009"),
        (7, "000000016 has the same image as 000000011"),
    ]


def test_memory_does_not_grow_by_objects_per_sample() -> None:
    images, samples = Images(), 20_000
    tracemalloc.start()
    for shard in range(samples // 100):
        images.add(shard, [(digest(shard * 100 + sample), key_of(shard * 100 + sample)) for sample in range(100)])
    assert list(images.duplicates()) == []
    assert tracemalloc.get_traced_memory()[1] < 70 * samples, "a dictionary takes 140 bytes per sample"
    tracemalloc.stop()
