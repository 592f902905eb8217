"""The plan: a recipe expanded into shards and samples. A pure function with random access to every shard."""

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise

from factory.config.class_balance import ClassSequence, shuffled
from factory.config.cooccurrence import WeightedGroups, balanced, pair_weights
from factory.config.keys import key_of
from factory.config.prompts import Prompt, captioned
from factory.config.recipe import Recipe
from factory.config.rich_prompts import RichPrompts
from factory.config.vocabulary import Vocabulary
from factory.errors import UserError
from factory.files.strict_json import canonical

MAX_SHARDS = 1_000_000


@dataclass(frozen=True)
class PlannedSample:
    """A sample to generate. `index` counts through the whole dataset; `key` is its zero-padded form."""

    index: int
    prompt: Prompt

    @property
    def key(self) -> str:
        """Nine digits: the stem of the sample's members."""
        return key_of(self.index)

    def seed(self, recipe_seed: int, attempt: int) -> int:
        """The 63-bit seed of an attempt; depends only on the recipe's seed, the index and the attempt."""
        return int.from_bytes(hashlib.sha256(f"{recipe_seed}/{self.index}/{attempt}".encode()).digest()[:8]) >> 1


@dataclass(frozen=True)
class PlannedShard:
    """A fixed range of samples. `digest` is the shard's fingerprint and links a receipt to this shard.

    `format` is the recipe's format, which defines how samples are filtered and recorded.
    """

    number: int
    samples: tuple[PlannedSample, ...]
    digest: str
    format: int


def shard_name(number: int) -> str:
    """The stem of a shard's file names."""
    return f"{number:06d}"


def class_sequence(recipe: Recipe) -> ClassSequence:
    """The classes of each generated prompt, as indices into the recipe's `planned_names`."""
    names, groups = recipe.planned_names(), None
    if recipe.cooccurrence is not None:
        weights = balanced(pair_weights(recipe.cooccurrence, recipe.vocabulary(), names))
        groups = WeightedGroups(weights, recipe.seed)
    return ClassSequence(len(names), recipe.objects, recipe.seed, (*recipe.earlier, recipe.n), groups)


class Plan:
    """The shards of a recipe, computed on demand.

    In an extended dataset, each range between two sizes has its own shards, so the shards of the smaller dataset do not
    change.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._prompt_block: tuple[int, list[int]] = (-1, [])
        """The last block of custom prompts, and their order in it."""
        self._ranges = list(pairwise((0, *recipe.earlier, recipe.n)))
        self._first_shards = [0]
        for start, stop in self._ranges:
            # Ceiling division, written as a negated floor division: the last shard of a range may be smaller.
            self._first_shards.append(self._first_shards[-1] - (start - stop) // recipe.shard_size)
        if len(self) > MAX_SHARDS:
            raise UserError(
                f"n = {recipe.n} in shards of {recipe.shard_size} gives {len(self)} shards; at most {MAX_SHARDS} are "
                f"allowed, so choose a larger --shard-size."
            )

    def __len__(self) -> int:
        return self._first_shards[-1]

    def bounds(self, number: int) -> tuple[int, int]:
        """The range [start, stop) of sample indices of a shard."""
        if not 0 <= number < len(self):
            raise IndexError(f"shard {number} of {len(self)}")
        part = bisect_right(self._first_shards, number) - 1
        first, stop = self._ranges[part]
        start = first + (number - self._first_shards[part]) * self.recipe.shard_size
        return start, min(start + self.recipe.shard_size, stop)

    def shard(self, number: int) -> PlannedShard:
        """The shard with this number and its samples."""
        start, stop = self.bounds(number)
        samples = tuple(PlannedSample(index, self.prompt(index)) for index in range(start, stop))
        prompts = [(sample.index, asdict(sample.prompt)) for sample in samples]
        digest = hashlib.sha256(self._fingerprint.encode() + canonical(prompts)).hexdigest()
        return PlannedShard(number, samples, digest, self.recipe.format)

    def prompt(self, index: int) -> Prompt:
        """The prompt of a sample: one of the recipe's prompts, or one for the next classes in the recipe's style."""
        if self._prompts is not None:
            return self._prompts[self._prompt_number(index)]
        if self._rich is not None:
            return self._rich.prompt(index, self.class_names(index))
        return captioned(self._vocabulary, self.class_names(index))

    def class_names(self, index: int) -> tuple[str, ...]:
        """The classes of a sample's prompt; cheaper than the prompt itself."""
        if self._prompts is not None:
            return self._prompts[self._prompt_number(index)].classes
        return tuple(self._names[position] for position in self._classes.at(index))

    def class_totals(self, end: int) -> Counter[str]:
        """How many of the samples 0..end-1 name each class, without planning all of them."""
        if self._prompts is None:
            return Counter(dict(zip(self._names, self._classes.totals(end), strict=True)))
        blocks, rest = divmod(end, len(self._prompts))
        in_block = Counter(name for prompt in self._prompts for name in prompt.classes)
        totals = Counter({name: count * blocks for name, count in in_block.items()})
        totals.update(name for index in range(end - rest, end) for name in self.class_names(index))
        return totals

    def samples(self) -> Iterator[PlannedSample]:
        """Every sample, in order."""
        return (PlannedSample(index, self.prompt(index)) for index in range(self.recipe.n))

    def _prompt_number(self, index: int) -> int:
        """The position of a sample's prompt in the recipe's list."""
        assert self._prompts is not None
        if self.recipe.real is not None:
            return index
        block, position = divmod(index, len(self._prompts))
        return self._prompt_order(block)[position]

    def _prompt_order(self, block: int) -> list[int]:
        # Read and written once each, because `verify` expands shards in several threads.
        cached_block, order = self._prompt_block
        if cached_block != block:
            assert self._prompts is not None
            order = shuffled(len(self._prompts), self.recipe.seed, "prompts", block)
            self._prompt_block = block, order
        return order

    @cached_property
    def _fingerprint(self) -> str:
        return self.recipe.fingerprint()

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return self.recipe.vocabulary()

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return self.recipe.planned_names()

    @cached_property
    def _prompts(self) -> list[Prompt] | None:
        return self.recipe.user_prompts()

    @cached_property
    def _rich(self) -> RichPrompts | None:
        return RichPrompts(self._vocabulary, self.recipe.seed) if self.recipe.prompt_style == "rich" else None

    @cached_property
    def _classes(self) -> ClassSequence:
        return class_sequence(self.recipe)
