"""Receipts: the small file written last that proves a shard; and the commit that ends with it."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from factory.config.plan import Plan, PlannedShard, shard_name
from factory.dataset.encode import EncodedSample
from factory.dataset.manifest import manifest_of, read_manifest
from factory.dataset.storage import ConflictError, Store
from factory.dataset.tar import pack
from factory.files.decode import decode_json


@dataclass(frozen=True)
class Blob:
    """A committed file."""

    name: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Receipt:
    """Proof of a shard. `plan` is the planned shard's digest; `short` lists the indices that no attempt filled.

    `rejected` counts attempts by reason, `seconds` are the shard's timings by step, `versions` those of libraries, and
    `worker` is the machine it ran on. Only timings, versions and worker may differ between runs of the same recipe.
    """

    shard: int
    recipe: str
    plan: str
    tar: Blob
    manifest: Blob
    planned: int
    accepted: int
    attempts: int
    rejected: Mapping[str, int]
    short: tuple[int, ...]
    seconds: Mapping[str, float]
    versions: Mapping[str, str]
    worker: Mapping[str, str]

    def to_json(self) -> bytes:
        """As `parse_receipt` reads it."""
        return json.dumps(asdict(self), sort_keys=True, indent=1).encode()


@dataclass(frozen=True)
class Tally:
    """What producing a shard amounted to, beside its samples."""

    attempts: int
    rejected: Mapping[str, int]
    exhausted: tuple[int, ...]


def tar_name(shard: int) -> str:
    """Where a shard's samples lie."""
    return f"train/{shard_name(shard)}.tar"


def manifest_name(shard: int) -> str:
    """Where a shard's rows lie."""
    return f"manifest/{shard_name(shard)}.parquet"


def receipt_name(shard: int) -> str:
    """Where a shard's proof lies."""
    return f"receipts/{shard_name(shard)}.json"


def commit(
    store: Store,
    shard: PlannedShard,
    samples: list[EncodedSample],
    tally: Tally,
    recipe: str,
    about: Mapping[str, Mapping[str, Any]],
) -> Receipt:
    """Write tar and manifest, then the receipt. Whoever comes second finds the same content and is content with it.

    `recipe` is the fingerprint; `about` holds `seconds`, `versions` and `worker`. Raises `ConflictError` where a tar of
    other bytes is there already, which no receipt proves.
    """
    data = pack(samples)
    try:
        store.create_same(tar_name(shard.number), data)
    except ConflictError as error:
        raise ConflictError(
            f"{error} If no other run is at work on this dataset, that file was left by one that ended before its "
            f"receipt: `factory verify {store.address} --repair` deletes it and makes the shard again."
        ) from error
    tar = blob_of(tar_name(shard.number), data)
    rows = manifest_of(samples, shard.number, shard.format)
    manifest = blob_of(manifest_name(shard.number), _create_manifest(store, manifest_name(shard.number), rows))
    receipt = Receipt(
        shard=shard.number,
        recipe=recipe,
        plan=shard.digest,
        tar=tar,
        manifest=manifest,
        planned=len(shard.samples),
        accepted=len(samples),
        attempts=tally.attempts,
        rejected=dict(sorted(tally.rejected.items())),
        short=tally.exhausted,
        seconds=about["seconds"],
        versions=about["versions"],
        worker=about["worker"],
    )
    store.create(receipt_name(shard.number), receipt.to_json())
    return receipt


def blob_of(name: str, data: bytes) -> Blob:
    """What a receipt says of a file."""
    return Blob(name, hashlib.sha256(data).hexdigest(), len(data))


def _create_manifest(store: Store, name: str, data: bytes) -> bytes:
    """Write a manifest, or take the one that is there if it has the same rows; returns what is there.

    Parquet files name the version of the library that wrote them, so rows are compared and not bytes.
    """
    while not store.create(name, data):
        there = store.get(name)
        if there is None:
            continue
        try:
            same = there == data or read_manifest(there) == read_manifest(data)
        except ValueError:
            same = False
        if not same:
            raise ConflictError(
                f"{store.address}/{name} exists with other rows than this worker made from the same plan, or cannot be "
                f"read. If no other run is at work on this dataset, `factory verify {store.address} --repair` deletes "
                f"it and makes the shard again."
            )
        return there
    return data


def read_receipt(store: Store, shard: int) -> Receipt | None:
    """A shard's receipt, or None; ValueError where the file is there but no receipt of this shard."""
    data = store.get(receipt_name(shard))
    receipt = None if data is None else parse_receipt(data)
    if receipt is not None and receipt.shard != shard:
        raise ValueError(f"no receipt of shard {shard}, but of {receipt.shard}")
    return receipt


def parse_receipt(data: bytes) -> Receipt:
    """ValueError where `data` is no receipt: it names the files of its own shard only, and every field has its type."""
    try:
        row = decode_json(data)
        shard = _whole(row["shard"])
        return Receipt(
            shard=shard,
            recipe=_digest(row["recipe"]),
            plan=_digest(row["plan"]),
            tar=_blob(row["tar"], tar_name(shard)),
            manifest=_blob(row["manifest"], manifest_name(shard)),
            planned=_whole(row["planned"]),
            accepted=_whole(row["accepted"]),
            attempts=_whole(row["attempts"]),
            rejected={str(reason): _whole(count) for reason, count in row["rejected"].items()},
            short=tuple(_whole(index) for index in row["short"]),
            seconds=dict(row["seconds"]),
            versions=dict(row["versions"]),
            worker=dict(row["worker"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no receipt: {type(error).__name__} {str(error)[:200]}") from error


def _blob(row: Any, name: str) -> Blob:
    if row["name"] != name:
        raise ValueError(f"it names {str(row['name'])[:60]!r}, not {name}")
    return Blob(name, _digest(row["sha256"]), _whole(row["bytes"]))


def _digest(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError(f"{str(value)[:80]!r} is no SHA-256 digest")
    return value


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError(f"{str(value)[:60]!r} is no count")
    return value


def committed(store: Store) -> set[int]:
    """The numbers of all shards that have a receipt: one listing, whatever their number."""
    return {number for name in store.list("receipts") if (number := _number(name)) is not None}


def tags(store: Store, shards: int) -> dict[int, str]:
    """The tag of each receipt's file in a listing, by number, for a plan of so many shards."""
    rows = ((_number(name), entry.tag) for name, entry in store.entries("receipts").items())
    return {number: tag for number, tag in rows if number is not None and number < shards}


def _number(name: str) -> int | None:
    """The shard of a receipt's file; None for any other file, such as receipts/1.json."""
    stem = name.removeprefix("receipts/").removesuffix(".json")
    known = re.fullmatch("[0-9]{6,7}", stem) and name == receipt_name(int(stem))
    return int(stem) if known else None


def missing(plan: Plan, done: Iterable[int]) -> list[int]:
    """Resume is this: the plan less the receipts."""
    there = set(done)
    return [number for number in range(len(plan)) if number not in there]
