"""Oracle sets as a stream of training samples: the same order every time, from any step on."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from factory.config.plan import Plan
from factory.config.prompts import Prompt
from factory.dataset.encode import ORACLE_SUFFIXES, EncodedSample
from factory.dataset.masks import IGNORE, decode_label_png
from factory.dataset.receipts import Receipt, committed
from factory.dataset.records import Image
from factory.dataset.state import receipts, recipe_of
from factory.dataset.storage import Store
from factory.dataset.stream import annotation_of, read_shard, readable
from factory.errors import UserError
from factory.files.decode import decode_array, decode_jpeg

_OPEN = 4
"""Shards whose samples are shuffled among each other."""


@dataclass(frozen=True)
class OracleSample:
    """One sample to learn from.

    `labels` is uint8 (H, W): 0 background, k the k-th class of the prompt, 255 to be ignored. `found` says which of the
    prompt's classes the detector found.
    """

    key: str
    prompt: Prompt
    latent: NDArray[np.float16]
    timestep: int
    image: Image
    labels: NDArray[np.uint8]
    found: tuple[bool, ...]


class OracleDataset:
    """One set that `bootstrap-oracle` made, opened and checked."""

    def __init__(self, store: Store) -> None:
        """UserError where there is no set, where it is no oracle, and where nothing of it is done."""
        self.store, self.recipe = store, recipe_of(store)
        if self.recipe.oracle is None:
            raise UserError(
                f"{store.address} is no oracle set but one of images with masks; make one with `factory "
                f"bootstrap-oracle`."
            )
        self.plan = Plan(self.recipe)
        numbers = sorted(number for number in committed(store) if number < len(self.plan))
        self.receipts = {row.shard: row for row in receipts(store, numbers)}
        if not self.receipts:
            raise UserError(f"{store.address} has no finished shard yet; run `factory bootstrap-oracle` to its end.")
        for row in self.receipts.values():
            self._check_receipt(row)
        size = sum(row.accepted for row in self.receipts.values())
        self.identity = f"{size} samples of recipe {self.recipe.fingerprint()[:12]}"

    def _check_receipt(self, row: Receipt) -> None:
        if row.recipe != self.recipe.fingerprint():
            raise UserError(
                f"shard {row.shard} of {self.store.address} was made by another recipe ({row.recipe[:12]}) than the "
                f"one beside it ({self.recipe.fingerprint()[:12]}): its classes may not be the seen ones. Make the "
                f"set again, or put its own recipe back."
            )

    def keys(self, held_out: bool, share: float) -> list[str]:
        """Keys of the samples for training, or of those held out."""
        return [
            sample.key
            for number, row in self.receipts.items()
            for sample in self.plan.shard(number).samples
            if sample.index not in row.short and is_held_out(sample.key, share) == held_out
        ]

    def samples(self, shard: int) -> Iterator[OracleSample]:
        """One shard's samples in order; UserError for one with a class that the split leaves unseen."""
        return (row.decode() for row in self.rows(shard))

    def rows(self, shard: int) -> Iterator["PackedSample"]:
        """One shard's samples in order, not yet decoded."""
        name = self.receipts[shard].tar.name
        prompts = {sample.key: sample.prompt for sample in self.plan.shard(shard).samples}
        for sample in read_shard(self.store, name, ORACLE_SUFFIXES):
            if sample.key not in prompts:
                raise UserError(
                    f"{name} of {self.store.address} holds sample {sample.key}, which its recipe does not plan; check "
                    f"it with `factory verify`."
                )
            yield PackedSample(self, sample, prompts[sample.key])

    def decode(self, sample: EncodedSample, prompt: Prompt) -> OracleSample:
        """One sample from its members; UserError where it is damaged or has a class that the split leaves unseen."""
        members = sample.members
        with readable(self.store, f"sample {sample.key}"):
            about, pixels = annotation_of(sample), decode_label_png(members["seg.png"])
            image, latent = decode_jpeg(members["jpg"]), decode_array(members["latent.npy"])
            timestep = about.get("timestep")
            if image.shape[:2] != pixels.shape or not isinstance(timestep, int) or not 0 <= timestep < 1000:
                raise ValueError(f"an image of {image.shape[:2]}, labels of {pixels.shape} at timestep {timestep!r}")
        assert self.recipe.oracle is not None
        leaked = {*about["classes"], *prompt.classes} - set(self.recipe.oracle.seen)
        if leaked:
            raise UserError(
                f"sample {sample.key} of {self.store.address} names {', '.join(sorted(leaked))}, which split "
                f"{self.recipe.oracle.split} leaves unseen; a grounder is trained on seen classes only."
            )
        if not np.isfinite(latent).all():
            raise UserError(
                f"the latent of sample {sample.key} of {self.store.address} holds NaN or infinity: the model that "
                f"made it overflows; make the dataset again, in float32 or with another autoencoder."
            )
        ids = {entry["category_name"]: entry["category_id"] for entry in about["annotations"]}
        labels = np.where(pixels == IGNORE, IGNORE, 0).astype(np.uint8)
        for place, name in enumerate(prompt.classes, 1):
            if name in ids:
                labels[pixels == ids[name]] = place
        return OracleSample(
            key=sample.key,
            prompt=prompt,
            latent=latent,
            timestep=timestep,
            image=image,
            labels=labels,
            found=tuple(name in ids for name in prompt.classes),
        )


@dataclass(frozen=True)
class PackedSample:
    """A sample's members as they lie in the tar."""

    of: OracleDataset
    sample: EncodedSample
    prompt: Prompt

    @property
    def key(self) -> str:
        """The sample's key."""
        return self.sample.key

    def decode(self) -> OracleSample:
        """Decompress and check."""
        return self.of.decode(self.sample, self.prompt)


class OracleStream:
    """Batches of several sets without end, in an order that depends on the seed alone.

    Each epoch shuffles the shards, and the samples of a few shards among each other. The batch of any step can be
    asked for; asking for the next one is cheap.
    """

    def __init__(self, sets: Sequence[OracleDataset], batch: int, seed: int, held_out: float) -> None:
        self._sets, self._batch, self._seed, self._held_out = sets, batch, seed, held_out
        self.size = sum(len(one.keys(False, held_out)) for one in sets)
        if self.size < 1:
            raise UserError("the oracle sets hold no sample to train on; make larger ones with --n.")
        self._next = 0
        self._rows: Iterator[PackedSample] = iter(())
        self._start(0)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> list[OracleSample]:
        """The samples of a step; of `world` equal parts the `rank`-th, which alone is decoded."""
        if step != self._next:
            self._start(step)
        self._next += 1
        return [row.decode() for row in list(islice(self._rows, self._batch))[rank::world]]

    def _start(self, step: int) -> None:
        epoch, place = divmod(step * self._batch, self.size)
        self._next, self._rows = step, islice(self._from(epoch), place, None)

    def _from(self, epoch: int) -> Iterator[PackedSample]:
        while True:
            yield from self._epoch(epoch)
            epoch += 1

    def _epoch(self, epoch: int) -> Iterator[PackedSample]:
        random = np.random.default_rng((self._seed, epoch))
        shards = [(one, number) for one in self._sets for number in one.receipts]
        order = random.permutation(len(shards))
        for start in range(0, len(order), _OPEN):
            opened: list[PackedSample] = []
            for place in order[start : start + _OPEN]:
                one, number = shards[place]
                opened += [row for row in one.rows(number) if not is_held_out(row.key, self._held_out)]
            yield from (opened[k] for k in random.permutation(len(opened)))


def held_out_samples(sets: Iterable[OracleDataset], share: float, most: int) -> list[OracleSample]:
    """The first `most` samples that training never sees."""
    rows = (row for one in sets for number in one.receipts for row in one.rows(number))
    return [row.decode() for row in islice((row for row in rows if is_held_out(row.key, share)), most)]


def first_samples(one: OracleDataset, most: int) -> list[OracleSample]:
    """The first `most` samples of a dataset, whatever shards they are in. UserError where it has none."""
    samples = [row.decode() for row in islice((row for number in one.receipts for row in one.rows(number)), most)]
    if not samples:
        raise UserError(f"{one.store.address} holds no sample: none was accepted. Look at `factory status`.")
    return samples


def is_held_out(key: str, share: float) -> bool:
    """Decided by the key alone, so that a set that grows keeps its parts."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) < share * 2**32
