"""Receipts without shards, for tests and benchmarks of code that only reads receipts."""

from factory.dataset.receipts import Blob, Receipt, manifest_name, tar_name


def receipt(number: int, accepted: int = 4, planned: int = 4, recipe: str = "0" * 64) -> bytes:
    """A receipt like those of workers, about 1 KB. `recipe` is a fingerprint."""
    tar, manifest = (Blob(name, f"{number:064x}", 10_000) for name in (tar_name(number), manifest_name(number)))
    return Receipt(
        shard=number,
        recipe=recipe,
        plan=f"{number:064x}",
        tar=tar,
        manifest=manifest,
        planned=planned,
        accepted=accepted,
        attempts=planned + 2,
        rejected={"overlap": 2},
        short=(),
        seconds={"generate": 12.345, "ground": 3.21, "encode": 0.7},
        versions={"torch": "2.13.0", "diffusers": "0.42.0"},
        worker={"host": "node", "device": "cuda", "machine": "x86_64"},
    ).to_json()
