"""How exactly the images of an inverted dataset are reconstructed."""

from factory.config.plan import Plan
from factory.config.recipe import Recipe
from factory.dataset.manifest import read_manifest
from factory.dataset.receipts import finished_shards, manifest_name
from factory.dataset.shards import readable
from factory.dataset.storage import Store


def mean_psnr(store: Store, recipe: Recipe) -> float:
    """The mean PSNR of the samples in dB, from the manifests; NaN if there are no samples.

    Raises UserError if a manifest is damaged.
    """
    values = []
    for number in finished_shards(store, Plan(recipe)):
        name = manifest_name(number)
        data = store.get(name)
        with readable(store, name):
            rows = read_manifest(data) if data is not None else []
        values += [dict(row["filters"])["psnr"] for row in rows]  # in format 1, the filters are pairs
    return sum(values) / len(values) if values else float("nan")
