"""Measures everything in a report in one pass over the shards of a dataset."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlparse

from factory.config.plan import Plan
from factory.config.recipe import Recipe
from factory.dataset.ordered_map import ordered_map
from factory.dataset.progress_file import read_progress
from factory.dataset.receipts import Receipt
from factory.dataset.records import Image
from factory.dataset.storage import Store, is_remote
from factory.dataset.stored_recipe import recipe_of
from factory.dataset.totals import Totals, finished_entries, read_receipts, totals_of
from factory.errors import TransientError, UserError
from factory.files.decode import decode_json
from factory.files.strict_json import canonical
from factory.generation.reporter import quarantine_name, quarantined
from factory.report.audit import Audit, duplicate_examples, rejected_images
from factory.report.contents import Contents
from factory.report.duplicates import find_duplicates
from factory.report.features import IMAGES, FeatureMean
from factory.report.funnel import funnel
from factory.report.receipt_sums import ReceiptSums
from factory.report.selection import RANKS, Lowest
from factory.report.shard_measures import AUDITED, Example, MeasureSettings, ShardMeasures, measure_shard

FORMAT = 1
"""Version of report.json; reports of other versions are not compared."""
_READERS = 4
_AHEAD = 8
"""Shards that are read while an earlier one is being added up."""
_ERRORS_SHOWN = 20

Watch = Callable[[int], None]


@dataclass(frozen=True)
class Measured:
    """The content of report.json without drift and verdict, and the thumbnails by name, uint8 RGB."""

    data: dict[str, Any]
    thumbnails: dict[str, Image]


def measure(store: Store, watch: Watch = lambda samples: None, features: int = IMAGES, audit: bool = True) -> Measured:
    """Measure the finished shards of a dataset. `watch` is called with the number of samples done.

    Features are computed for about `features` images. Damaged shards are listed and left out. Raises UserError if there
    is no dataset.
    """
    recipe = recipe_of(store)
    plan = Plan(recipe)
    entries = finished_entries(store, plan)  # listed once: a run may add shards meanwhile
    totals = totals_of(entries)
    settings = MeasureSettings(recipe.format, RANKS * min(1.0, features / max(1, totals.accepted)))
    contents, sums, means = Contents(recipe), ReceiptSums(), FeatureMean()
    random, worst, damaged = Lowest[Example](AUDITED), Lowest[Example](AUDITED), dict[int, str]()
    for receipt, shard in _shards(store, list(entries), settings):
        sums.add(receipt)
        if isinstance(shard, UserError):
            damaged[receipt.shard] = store.hide(str(shard))
            continue
        contents.add(shard)
        means.add(shard.feature_images)
        for selection, of_shard in ((random, shard.random), (worst, shard.worst)):
            for entry in of_shard.entries:
                selection.add(*entry)
        watch(contents.samples)
    hashes, indices = contents.hashes()
    duplicates = find_duplicates(hashes)
    images = Audit({entry.name: entry.id for entry in recipe.vocabulary().classes})
    audited: dict[str, Any] = {"random": [], "worst": [], "rejected": {}}
    groups: list[list[dict[str, Any]]] = []
    if audit:
        audited = {
            "random": images.samples("random", random.items()),
            "worst": images.samples("worst", worst.items()),
            "rejected": images.rejected(rejected_images(store, sums.shards_with_rejections())),
        }
        similar = duplicate_examples(store, duplicates, indices, contents.shard_of)
        groups = [images.samples(f"group{number}", group) for number, group in enumerate(similar)]
    data = {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "factory": version("dataset-factory"),
        "dataset": _about(store, recipe, plan, totals),
        "funnel": funnel(sums.attempts, sums.rejected),
        "classes": contents.classes(plan, sums),
        "objects": contents.objects(),
        "images": contents.images(),
        "duplicates": duplicates.to_dict(len(hashes)) | {"examples": groups},
        "agreement": contents.agreement() | {"min_detector_iou": recipe.filters.min_detector_iou},
        "time": sums.to_dict(),
        "run": _run(store) | {"damaged": [{"shard": number, "error": text} for number, text in damaged.items()]},
        "features": means.to_dict(),
        "audit": audited,
    }
    return Measured(data, images.thumbnails)


def _shards(
    store: Store, numbers: list[int], settings: MeasureSettings
) -> Iterator[tuple[Receipt, ShardMeasures | UserError]]:
    """Measure shards concurrently, in order and with bounded memory; a damaged one gives its error."""

    def read(receipt: Receipt) -> ShardMeasures | UserError:
        try:
            return measure_shard(store, receipt.shard, settings)
        except TransientError:
            raise
        except UserError as error:
            return error

    return ordered_map(read, read_receipts(store, numbers), _READERS, _AHEAD, name="measures")


def _about(store: Store, recipe: Recipe, plan: Plan, totals: Totals) -> dict[str, Any]:
    return {
        "address": store.address,
        "name": _name(str(store.folder or store.address)),
        "fingerprint": recipe.fingerprint(),
        "settings": settings(recipe),
        "n": recipe.n,
        "samples": totals.accepted,
        "exhausted": totals.exhausted,
        "complete": totals.shards == len(plan),
        "shards": totals.shards,
        "shards_planned": len(plan),
        "bytes": totals.bytes,
    }


def settings(recipe: Recipe) -> dict[str, Any]:
    """The settings that affect the content except the seed, with dotted names.

    A long list, such as prompts or classes, is represented by its length and a digest.
    """
    flat: dict[str, Any] = {}

    def flatten(value: Any, name: str) -> None:
        if isinstance(value, dict) and value:
            for key, entry in value.items():
                flatten(entry, f"{name}.{key}" if name else str(key))
        elif isinstance(value, list) and len(value) > 8:
            flat[name] = f"{len(value)} entries, SHA-256 {hashlib.sha256(canonical(value)).hexdigest()[:12]}"
        else:
            flat[name] = value

    flatten({name: value for name, value in recipe.content().items() if name != "seed"}, "")
    return flat


def _name(address: str) -> str:
    """The last two parts of an address, such as 2026-11-25/dataset."""
    parts = PurePosixPath(urlparse(address).path or address if is_remote(address) else address).parts
    return "/".join(part for part in parts[-2:] if part != "/") or address


def _run(store: Store) -> dict[str, Any]:
    """What the last run reported in progress.json, and the quarantined shards, the first of them with their errors."""
    progress = read_progress(store)
    failed = [
        {"shard": number, "error": _quarantine_error(store, number) if k < _ERRORS_SHOWN else ""}
        for k, number in enumerate(sorted(quarantined(store)))
    ]
    errors = progress.get("errors")
    return {
        "status": str(progress.get("status", "unknown"))[:40],
        "updated": str(progress.get("updated", ""))[:40],
        "seconds": _count(progress.get("seconds")),
        "lost_workers": _count(progress.get("lost_workers")),
        "requeued": _count(progress.get("requeued")),
        "errors": [str(error)[:500] for error in errors[:_ERRORS_SHOWN]] if isinstance(errors, list) else [],
        "quarantined": failed,
    }


def _quarantine_error(store: Store, shard: int) -> str:
    """The end of the error in the shard's file of quarantine/; empty if it is missing or invalid."""
    data = store.get_derived(quarantine_name(shard))
    try:
        return str(decode_json(data or b"{}").get("error", ""))[-2000:]
    except (ValueError, AttributeError):
        return ""


def _count(value: object) -> int | float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e12 else None
