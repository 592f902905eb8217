"""Receipts: the small file written last that proves a shard; and the commit that ends with it."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from factory.manifest import manifest_of
from factory.plan import Plan, PlannedShard, shard_name
from factory.shards.encode import EncodedSample
from factory.shards.tar import pack
from factory.store import Store


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
    short: tuple[int, ...]


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
    """Write tar and manifest, then the receipt. Whoever comes second finds the same bytes and is content.

    `recipe` is the fingerprint; `about` holds `seconds`, `versions` and `worker`. Raises `ConflictError` where other
    bytes are there already.
    """
    files = {tar_name(shard.number): pack(samples), manifest_name(shard.number): manifest_of(samples, shard.number)}
    for name, data in files.items():
        store.create_same(name, data)
    tar, manifest = (Blob(name, hashlib.sha256(data).hexdigest(), len(data)) for name, data in files.items())
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
        short=tally.short,
        seconds=about["seconds"],
        versions=about["versions"],
        worker=about["worker"],
    )
    store.create(receipt_name(shard.number), receipt.to_json())
    return receipt


def read_receipt(store: Store, shard: int) -> Receipt | None:
    """A shard's receipt, or None; ValueError where the file is there but no receipt."""
    data = store.get(receipt_name(shard))
    return None if data is None else parse_receipt(data)


def parse_receipt(data: bytes) -> Receipt:
    """ValueError where `data` is no receipt."""
    try:
        row = json.loads(data)
        known = {field.name: row[field.name] for field in fields(Receipt)}
        blobs = {name: Blob(**row[name]) for name in ("tar", "manifest")}
        return Receipt(**(known | blobs | {"short": tuple(row["short"])}))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"no receipt: {type(error).__name__} {error}") from error


def committed(store: Store) -> set[int]:
    """The numbers of all shards that have a receipt: one listing, whatever their number."""
    names = (name.removeprefix("receipts/").removesuffix(".json") for name in store.list("receipts"))
    return {int(stem) for stem in names if stem.isdecimal()}


def tags(store: Store, shards: int) -> dict[int, str]:
    """The tag of each receipt's file in a listing, by number, for a plan of so many shards."""
    found = {}
    for name, entry in store.entries("receipts").items():
        stem = name.removeprefix("receipts/").removesuffix(".json")
        if stem.isdecimal() and int(stem) < shards:
            found[int(stem)] = entry.tag
    return found


def missing(plan: Plan, done: Iterable[int]) -> list[int]:
    """Resume is this: the plan less the receipts."""
    there = set(done)
    return [number for number in range(len(plan)) if number not in there]
