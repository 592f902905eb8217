"""Receipts, the small files that prove a shard is complete, and the commit that writes them last."""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from factory.config.plan import Plan, PlannedShard, shard_name
from factory.dataset.encode import EncodedSample
from factory.dataset.manifest import manifest_of, read_manifest
from factory.dataset.storage import ConflictError, Store
from factory.dataset.storage_errors import UnreadableError
from factory.dataset.tar import pack
from factory.errors import UserError, command
from factory.files.decode import decode_json

_COMPARED = 3


@dataclass(frozen=True)
class Blob:
    """A committed file: its name in the dataset, its SHA-256 as 64 hex digits, and its size in bytes."""

    name: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Receipt:
    """Proof that a shard is complete.

    `plan` is the digest of the planned shard. `short` lists the indices of samples that were rejected in every attempt.
    `rejected` counts attempts by reason, `seconds` are timings by step, `versions` are library versions, and `worker`
    describes the machine. Only `seconds`, `versions` and `worker` may differ between runs of the same recipe.
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
        """Serialise for `parse_receipt`."""
        return json.dumps(asdict(self), sort_keys=True, indent=1).encode()


class CorruptReceiptError(ValueError):
    """A receipt that cannot be parsed or belongs to another shard; a store that does not respond is another error."""


@dataclass(frozen=True)
class Tally:
    """Counts of generating a shard; `exhausted` lists the indices of samples that were rejected in every attempt."""

    attempts: int
    rejected: Mapping[str, int]
    exhausted: tuple[int, ...]


def tar_name(shard: int) -> str:
    """The path of a shard's samples."""
    return f"train/{shard_name(shard)}.tar"


def manifest_name(shard: int) -> str:
    """The path of a shard's manifest."""
    return f"manifest/{shard_name(shard)}.parquet"


def receipt_name(shard: int) -> str:
    """The path of a shard's receipt."""
    return f"receipts/{shard_name(shard)}.json"


def commit(
    store: Store,
    shard: PlannedShard,
    samples: list[EncodedSample],
    tally: Tally,
    recipe: str,
    run_info: Mapping[str, Mapping[str, Any]],
) -> Receipt:
    """Write the tar and the manifest, then the receipt. Committing the same shard twice is harmless.

    `recipe` is the fingerprint; `run_info` holds `seconds`, `versions` and `worker`. Raises `ConflictError` if a file
    with different content exists, or the receipt of different files.
    """
    data = pack(samples)
    try:
        store.create_same(tar_name(shard.number), data)
    except ConflictError as error:
        raise ConflictError(
            f"{error} If no other run is working on this dataset, the file was left by a run that stopped before "
            f"writing the receipt; {command('verify', store.address, '--repair')} deletes it and regenerates the shard."
        ) from error
    tar = blob_of(tar_name(shard.number), data)
    data = manifest_of(samples, shard.number, shard.format)
    manifest = blob_of(manifest_name(shard.number), _create_manifest(store, manifest_name(shard.number), data))
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
        seconds=run_info["seconds"],
        versions=run_info["versions"],
        worker=run_info["worker"],
    )
    stored = parse_receipt(store.create_or_get(receipt_name(shard.number), receipt.to_json()))
    if (stored.plan, stored.tar, stored.manifest) != (receipt.plan, receipt.tar, receipt.manifest):
        raise ConflictError(
            f"{store.address_of(receipt_name(shard.number))} has other digests: a worker of another run wrote it. "
            f"{command('verify', store.address, '--repair')} deletes it and regenerates the shard."
        )
    return receipt


def blob_of(name: str, data: bytes) -> Blob:
    """The description of a file with this content."""
    return Blob(name, hashlib.sha256(data).hexdigest(), len(data))


def _create_manifest(store: Store, name: str, data: bytes) -> bytes:
    """Write a manifest, or keep an existing one with the same rows; returns the stored bytes.

    Rows are compared, not bytes, because a parquet file contains the version of the library that wrote it.
    """
    stored = store.create_or_get(name, data)
    try:
        same = stored == data or read_manifest(stored) == read_manifest(data)
    except ValueError:
        same = False
    if not same:
        raise ConflictError(
            f"{store.address_of(name)} exists but cannot be read or has different rows than this worker generated from "
            f"the same plan. If no other run is working on this dataset, "
            f"{command('verify', store.address, '--repair')} deletes it and regenerates the shard."
        )
    return stored


def read_receipt(store: Store, shard: int) -> Receipt | None:
    """Read a shard's receipt; None if it is missing. Raises CorruptReceiptError if it is not one of this shard."""
    data = store.get(receipt_name(shard))
    return None if data is None else _receipt_of(shard, data)


def needed_receipt(store: Store, shard: int, data: bytes, recipe: str | None) -> Receipt:
    """Parse the receipt of a shard for a reader that cannot do without; raises UserError if it is corrupt.

    `recipe` is a fingerprint: a receipt of another recipe, which a replaced driver can leave, is then corrupt as well.
    """
    try:
        receipt = _receipt_of(shard, data)
        if recipe not in (None, receipt.recipe):
            raise CorruptReceiptError(f"it names another recipe, {receipt.recipe[:12]}")
    except CorruptReceiptError as error:
        raise UserError(
            f"the receipt of shard {shard} is corrupt ({error}); repair it with "
            f"{command('verify', store.address, '--repair')}."
        ) from error
    return receipt


def _receipt_of(shard: int, data: bytes) -> Receipt:
    receipt = parse_receipt(data)
    if receipt.shard != shard:
        raise CorruptReceiptError(f"not a receipt of shard {shard}, but of shard {receipt.shard}")
    return receipt


def parse_receipt(data: bytes) -> Receipt:
    """Parse and validate a receipt; raises CorruptReceiptError for wrong types or file names of another shard."""
    try:
        fields = decode_json(data)
        shard = parse_count(fields["shard"])
        return Receipt(
            shard=shard,
            recipe=_digest(fields["recipe"]),
            plan=_digest(fields["plan"]),
            tar=_blob(fields["tar"], tar_name(shard)),
            manifest=_blob(fields["manifest"], manifest_name(shard)),
            planned=parse_count(fields["planned"]),
            accepted=parse_count(fields["accepted"]),
            attempts=parse_count(fields["attempts"]),
            rejected=parse_reason_counts(fields["rejected"]),
            short=tuple(parse_count(index) for index in fields["short"]),
            seconds=dict(fields["seconds"]),
            versions=dict(fields["versions"]),
            worker=dict(fields["worker"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptReceiptError(f"not a valid receipt: {type(error).__name__} {str(error)[:200]}") from error


def _blob(fields: Any, name: str) -> Blob:
    if fields["name"] != name:
        raise ValueError(f"it names {str(fields['name'])[:60]!r}, not {name}")
    return Blob(name, _digest(fields["sha256"]), parse_count(fields["bytes"]))


def _digest(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError(f"{str(value)[:80]!r} is not a SHA-256 digest")
    return value


def parse_count(value: object) -> int:
    """Return a count of untrusted data; raises ValueError if it is not an integer from 0 to below 2**63."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError(f"{str(value)[:60]!r} is not a count")
    return value


def parse_reason_counts(counts: Any) -> dict[str, int]:
    """Counts by reason of untrusted data; raises ValueError unless the reasons are identifiers."""
    for reason in counts:
        if not re.fullmatch("[a-z0-9_]{1,40}", reason):
            raise ValueError(f"{reason[:60]!r} is not a reason")
    return {reason: parse_count(number) for reason, number in counts.items()}


def check_same_recipe(store: Store, recipe: str, finished: Sequence[int]) -> None:
    """UserError if the first finished shards were all generated with another recipe: recipe.yaml was changed since.

    `recipe` is the fingerprint of the recipe. A single receipt of another recipe is damage, which a worker of a
    replaced driver can leave.
    """
    others = set[str]()
    for number in finished[:_COMPARED]:
        with contextlib.suppress(CorruptReceiptError, UnreadableError):
            data = store.get(receipt_name(number))
            others |= set() if data is None else {parse_receipt(data).recipe}
        if recipe in others:
            return
    if others:
        raise UserError(
            f"{store.address} was generated with the recipe {min(others)[:12]}, but its recipe.yaml now has the "
            f"fingerprint {recipe[:12]}: the file was changed since. Undo the change, or move the file, give it with "
            f"--recipe and generate a new dataset with another --shards."
        )


def committed_shards(store: Store) -> set[int]:
    """The numbers of all shards with a receipt; requires a single listing."""
    return {number for name in store.list("receipts") if (number := _number(name)) is not None}


def finished_shards(store: Store, plan: Plan) -> list[int]:
    """The shards of a plan that have a receipt, ascending; requires a single listing."""
    return sorted(number for number in committed_shards(store) if number < len(plan))


def receipt_tags(store: Store, shards: int) -> dict[int, str]:
    """The tag of each receipt file by shard number, for a plan of `shards` shards."""
    # Names before which the listing is divided: the first two of six digits count ten thousands of shards.
    bounds = [f"receipts/{ten_thousands:02d}" for ten_thousands in range(1, min(99, (shards - 1) // 10_000) + 1)]
    entries = store.entries("receipts", bounds=bounds)
    numbered = ((_number(name), entry.tag) for name, entry in entries.items())
    return {number: tag for number, tag in numbered if number is not None and number < shards}


def _number(name: str) -> int | None:
    """The shard number of a receipt's file name; None for any other file, such as receipts/1.json."""
    stem = name.removeprefix("receipts/").removesuffix(".json")
    known = re.fullmatch("[0-9]{6}", stem) and name == receipt_name(int(stem))
    return int(stem) if known else None


def missing_shards(plan: Plan, done: Iterable[int]) -> list[int]:
    """The shards of the plan without a receipt: the ones that a resumed run generates."""
    existing = set(done)
    return [number for number in range(len(plan)) if number not in existing]
