"""Oracle datasets as a source of training samples."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from factory.config.keys import key_of
from factory.config.plan import Plan
from factory.config.prompts import Prompt
from factory.config.recipe import FORMAT
from factory.dataset.encode import ORACLE_SUFFIXES, EncodedSample
from factory.dataset.masks import IGNORE, decode_label_png
from factory.dataset.receipts import Receipt, finished_shards
from factory.dataset.records import Image
from factory.dataset.shards import annotation_of, read_shard, readable
from factory.dataset.storage import Store
from factory.dataset.stored_recipe import recipe_of
from factory.dataset.totals import read_receipts
from factory.errors import UserError
from factory.files.decode import decode_array, decode_jpeg


@dataclass(frozen=True)
class OracleSample:
    """A training sample.

    `latent`, float16 (C, h, w), already has the noise level `noise_level`, 0 if it is clean. `labels` is uint8 (H, W):
    0 is background, k the k-th class of the prompt, 255 ignored. `found` is whether the detector found each class of
    the prompt.
    """

    key: str
    prompt: Prompt
    latent: NDArray[np.float16]
    noise_level: float
    image: Image
    labels: NDArray[np.uint8]
    found: tuple[bool, ...]


class OracleDataset:
    """A dataset of `bootstrap-oracle` or `invert`, opened and checked."""

    def __init__(self, store: Store, writer: str = "factory bootstrap-oracle") -> None:
        """Raises UserError if there is no dataset, if it is not an oracle dataset, or if it has no finished shard.

        `writer` is the command that the message names for creating one.
        """
        self.store, self.recipe = store, recipe_of(store, writer)
        if self.recipe.oracle is None:
            raise UserError(
                f"{store.address} is a dataset of images with masks, not an oracle dataset; create one with `{writer}`."
            )
        if self.recipe.format < FORMAT:
            raise UserError(
                f"{store.address} is an oracle dataset of format {self.recipe.format}, whose latents were stored "
                f"during sampling; this version stores and reads finished latents. Create it again in another folder."
            )
        self.plan = Plan(self.recipe)
        numbers = finished_shards(store, self.plan)
        self.receipts = {receipt.shard: receipt for receipt in read_receipts(store, numbers)}
        if not self.receipts:
            raise UserError(
                f"{store.address} has no finished shard yet; rerun `factory bootstrap-oracle` to complete it."
            )
        fingerprint = self.recipe.fingerprint()
        for receipt in self.receipts.values():
            self._check_receipt(receipt, fingerprint)
        size = sum(receipt.accepted for receipt in self.receipts.values())
        self.identity = f"{size} samples of recipe {fingerprint[:12]}"

    def _check_receipt(self, receipt: Receipt, fingerprint: str) -> None:
        if receipt.recipe != fingerprint:
            raise UserError(
                f"shard {receipt.shard} of {self.store.address} was made with another recipe ({receipt.recipe[:12]}) "
                f"than the dataset's recipe.yaml ({fingerprint[:12]}), so it may show unseen classes; "
                f"create the dataset again, or restore its recipe."
            )

    def keys(self, held_out: bool, share: float) -> list[str]:
        """Keys of the training samples, or of the held-out ones."""
        keys = (
            key_of(index)
            for number, receipt in self.receipts.items()
            for index in sorted(set(range(*self.plan.bounds(number))) - set(receipt.short))
        )
        return [key for key in keys if is_held_out(key, share) == held_out]

    def samples(self, shard: int) -> Iterator[OracleSample]:
        """One shard's samples in order. Raises UserError for a class that the split leaves unseen."""
        return (packed.decode() for packed in self.packed(shard))

    def packed(self, shard: int) -> Iterator["PackedSample"]:
        """One shard's samples in order, not decoded yet."""
        name = self.receipts[shard].tar.name
        prompts = {sample.key: sample.prompt for sample in self.plan.shard(shard).samples}
        for sample in read_shard(self.store, name, ORACLE_SUFFIXES):
            if sample.key not in prompts:
                raise UserError(
                    f"{name} of {self.store.address} contains sample {sample.key}, which its recipe does not plan; "
                    f"check the dataset with `factory verify`."
                )
            yield PackedSample(self, sample, prompts[sample.key])

    def decode(self, sample: EncodedSample, prompt: Prompt) -> OracleSample:
        """Decode a sample. Raises UserError if it is damaged or shows a class that the split leaves unseen."""
        members = sample.members
        with readable(self.store, f"sample {sample.key}"):
            annotation, pixels = annotation_of(sample), decode_label_png(members["seg.png"])
            image, latent = decode_jpeg(members["jpg"]), decode_array(members["latent.npy"])
            level = annotation.get("noise_level")
            if image.shape[:2] != pixels.shape or not isinstance(level, float | int) or not 0 <= level < 1:
                raise ValueError(f"an image of {image.shape[:2]}, labels of {pixels.shape} at noise level {level!r}")
        assert self.recipe.oracle is not None
        leaked = {*annotation["classes"], *prompt.classes} - set(self.recipe.oracle.seen)
        if leaked:
            raise UserError(
                f"sample {sample.key} of {self.store.address} shows {', '.join(sorted(leaked))}, which split "
                f"{self.recipe.oracle.split} leaves unseen; a grounder may be trained on seen classes only."
            )
        if not np.isfinite(latent).all():
            raise UserError(
                f"the latent of sample {sample.key} of {self.store.address} contains NaN or infinity: the model that "
                f"made it overflows; create the dataset again, in float32 or with another autoencoder."
            )
        ids = {entry["category_name"]: entry["category_id"] for entry in annotation["annotations"]}
        labels = np.where(pixels == IGNORE, IGNORE, 0).astype(np.uint8)
        for k, name in enumerate(prompt.classes, 1):
            if name in ids:
                labels[pixels == ids[name]] = k
        return OracleSample(
            key=sample.key,
            prompt=prompt,
            latent=latent,
            noise_level=float(level),
            image=image,
            labels=labels,
            found=tuple(name in ids for name in prompt.classes),
        )


@dataclass(frozen=True)
class PackedSample:
    """A sample that is not decoded yet."""

    dataset: OracleDataset
    sample: EncodedSample
    prompt: Prompt

    @property
    def key(self) -> str:
        """The sample's key."""
        return self.sample.key

    def decode(self) -> OracleSample:
        """Decompress and check it."""
        return self.dataset.decode(self.sample, self.prompt)


class OracleSource:
    """The training samples of several oracle datasets, without the held-out samples; the parts are shards."""

    def __init__(self, datasets: Sequence[OracleDataset], held_out: float) -> None:
        """UserError if there is no sample."""
        self._held_out = held_out
        self._shards = [(dataset, number) for dataset in datasets for number in dataset.receipts]
        self.size = sum(len(dataset.keys(False, held_out)) for dataset in datasets)
        if self.size < 1:
            raise UserError("the oracle datasets have no sample to train on; create larger ones with --n.")
        self.identity = " and ".join(dataset.identity for dataset in datasets)

    def parts(self) -> int:
        """Number of finished shards."""
        return len(self._shards)

    def samples(self, part: int) -> list[PackedSample]:
        """The training samples of a shard, not decoded yet."""
        dataset, number = self._shards[part]
        return [packed for packed in dataset.packed(number) if not is_held_out(packed.key, self._held_out)]


def held_out_samples(datasets: Iterable[OracleDataset], share: float, max_samples: int) -> list[OracleSample]:
    """The first `max_samples` samples that training never sees."""
    held_out = (packed for dataset in datasets for packed in _all_packed(dataset) if is_held_out(packed.key, share))
    return [packed.decode() for packed in islice(held_out, max_samples)]


def first_samples(dataset: OracleDataset, max_samples: int) -> list[OracleSample]:
    """The first `max_samples` samples of a dataset, from as many shards as needed. Raises UserError if it has none."""
    samples = [packed.decode() for packed in islice(_all_packed(dataset), max_samples)]
    if not samples:
        raise UserError(f"{dataset.store.address} has no sample: none was accepted; see `factory status`.")
    return samples


def _all_packed(dataset: OracleDataset) -> Iterator[PackedSample]:
    return (packed for number in dataset.receipts for packed in dataset.packed(number))


def is_held_out(key: str, share: float) -> bool:
    """Whether a sample is held out of training; depends only on its key, so that a growing dataset keeps its split."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) < share * 2**32
