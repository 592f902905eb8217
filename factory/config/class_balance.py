"""The classes that each prompt names: sequences that are balanced in every prefix and have random access.

Classes are indices 0..count-1. A sequence is a pure function of its seed, so index 10,000,000 costs as much as index
0, and a longer dataset starts with the shorter one.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from factory.config.cooccurrence import WeightedGroups

MAX_OBJECTS = 6
_MAX_CACHED = 256
"""Number of orders in the cache of a sequence; a full cache is cleared."""


def shuffled(count: int, *key: object) -> list[int]:
    """Shuffle 0..count-1 by hash of `key`, independent of any random generator and library version."""
    prefix = "/".join(str(part) for part in key)
    return sorted(range(count), key=lambda number: hashlib.sha256(f"{prefix}/{number}".encode()).digest())


class ObjectCounts:
    """The number of objects of each sample. In every prefix, each number occurs in proportion to its share.

    The counts are decided one after another: the first takes its share of all samples at evenly spaced indices, the
    next takes its share of the remaining ones, and so on. The last takes the rest.
    """

    def __init__(self, shares: Mapping[int, float]) -> None:
        exact = {count: Fraction(str(share)) for count, share in sorted(shares.items()) if share > 0}
        total = sum(exact.values())
        self._steps: list[tuple[int, Fraction]] = []
        rest = Fraction(total)
        for count, share in exact.items():
            self._steps.append((count, share / rest))
            rest -= share

    def at(self, index: int) -> tuple[int, int]:
        """(number of objects, number of earlier samples with the same number of objects)."""
        for count, share in self._steps[:-1]:
            before = _rounded(share, index)
            if _rounded(share, index + 1) > before:
                return count, before
            index -= before
        return self._steps[-1][0], index

    def before(self, index: int) -> dict[int, int]:
        """For each number of objects, how many of the samples 0..index-1 have it."""
        result = {}
        for count, share in self._steps[:-1]:
            result[count] = _rounded(share, index)
            index -= result[count]
        result[self._steps[-1][0]] = index
        return result


class ClassSequence:
    """The classes of each sample.

    Among samples with the same number of objects, class counts differ by at most 1 in every prefix; for two objects,
    so do pair counts. `ends` are the sizes that the dataset was planned with, in order. Single-object samples are
    ordered so that the total over one and two objects also differs by at most 1 at the first of the `ends`. With
    `groups`, which classes occur together follows their weights; pair counts are then not balanced.
    """

    def __init__(
        self,
        count: int,
        shares: Mapping[int, float],
        seed: int,
        ends: Sequence[int] = (),
        groups: WeightedGroups | None = None,
    ) -> None:
        self.count, self.seed = count, seed
        self.objects = ObjectCounts(shares)
        self._ends, self._groups = tuple(ends), groups
        self._orders: dict[tuple[object, ...], list[int]] = {}

    def at(self, index: int) -> tuple[int, ...]:
        """The distinct classes of the sample at `index`, in prompt order."""
        return self._with_objects(*self.objects.at(index))

    def totals(self, end: int) -> list[int]:
        """How many of the samples 0..end-1 name each class. Takes the time of a few turns, which name all equally."""
        totals = [0] * self.count
        for objects, samples in self.objects.before(end).items():
            mentions = samples * objects
            # The pairs of an odd number of classes name every class twice per turn, all others once.
            times = 2 if objects == 2 and self.count % 2 and self._groups is None else 1
            turns, rest = divmod(mentions, times * self.count)
            totals = [total + turns * times for total in totals]
            for mention in range(mentions - rest, mentions):
                totals[self._with_objects(objects, mention // objects)[mention % objects]] += 1
        return totals

    def _with_objects(self, objects: int, position: int) -> tuple[int, ...]:
        """The classes of the sample at `position` among those with this number of objects."""
        if objects == 1:
            block, slot = divmod(position, self.count)
            return (self._single_block(block)[slot],)
        if objects == 2:
            return self._pair(position)
        return self._group(objects, position) if self._groups is None else self._groups.at(objects, position)

    def _order(self, count: int, *key: object) -> list[int]:
        """Cached `shuffled`; neighbouring samples share the order of their block."""
        return self._cached((count, *key), lambda: shuffled(count, self.seed, *key))

    def _cached(self, key: tuple[object, ...], compute: Callable[[], list[int]]) -> list[int]:
        """The order with this key; not looked up a second time, because another thread may clear the cache."""
        order = self._orders.get(key)
        if order is None:
            order = compute()
            if len(self._orders) > _MAX_CACHED:
                self._orders.clear()
            self._orders[key] = order
        return order

    def _single_block(self, block: int) -> list[int]:
        """All classes once. Up to each end within this block, classes that pairs named less often come first."""
        rest = self._order(self.count, "single", block)
        chosen: list[int] = []
        for end in self._ends:
            before = self.objects.before(end)
            size = before.get(1, 0) - block * self.count - len(chosen)
            if 0 < size < len(rest):
                load = self._pair_load(before.get(2, 0))
                first = sorted(rest, key=load.__getitem__)[:size]
                chosen += first
                rest = [index for index in rest if index not in first]
        return chosen + rest

    def _pair_load(self, pairs: int) -> list[int]:
        """How often each class has been named since pair counts were last equal."""
        load = [0] * self.count
        if pairs:
            period = self.count // 2 if self.count % 2 == 0 else self.count
            for position in range(pairs - pairs % period, pairs):
                for index in self._pair(position):
                    load[index] += 1
        return load

    def _pair(self, position: int) -> tuple[int, ...]:
        """Two classes: by their weights, or every pair equally often."""
        return self._even_pair(position) if self._groups is None else self._groups.at(2, position)

    def _even_pair(self, position: int) -> tuple[int, int]:
        """One pair of classes; count * (count - 1) / 2 consecutive positions hold every pair once.

        A turn names every class equally often: a perfect matching for an even count, a Hamiltonian cycle for an odd
        one. Class names, turns and (for matchings) pairs within a turn are shuffled anew in each cycle through all
        pairs. Pairs of a Hamiltonian cycle keep their order, because that order keeps its prefixes balanced.
        """
        cycle, rest = divmod(position, self.count * (self.count - 1) // 2)
        names = self._order(self.count, "names", cycle)
        even = self.count % 2 == 0
        period = self.count // 2 if even else self.count
        turn, slot = divmod(rest, period)
        turn = self._order(self.count - 1 if even else (self.count - 1) // 2, "turns", cycle)[turn]
        if even:
            slot = self._order(period, "slots", cycle, turn)[slot]
        first, second = (_matching_pair if even else _hamiltonian_pair)(self.count, turn, slot)
        swap = hashlib.sha256(f"{self.seed}/swap/{position}".encode()).digest()[0] & 1
        return (names[second], names[first]) if swap else (names[first], names[second])

    def _group(self, size: int, position: int) -> tuple[int, ...]:
        """Three or more classes: shuffled blocks of all classes, cut into groups. Requires 3 * (size - 1) classes."""
        places = (divmod(number, self.count) for number in range(position * size, (position + 1) * size))
        return tuple(self._group_block(size, block)[slot] for block, slot in places)

    def _group_block(self, size: int, block: int) -> list[int]:
        """All classes once. Its head and the previous block's tail are disjoint, so no group repeats a class."""
        return self._cached((self.count, "headed", size, block), lambda: self._new_group_block(size, block))

    def _new_group_block(self, size: int, block: int) -> list[int]:
        order, fixed = self._order(self.count, "group", size, block), self.count - (size - 1)
        previous = self._order(self.count, "group", size, block - 1)[fixed:] if block else []
        head = [index for index in order[:fixed] if index not in previous][: size - 1]
        return head + [index for index in order[:fixed] if index not in head] + order[fixed:]


def _rounded(share: Fraction, index: int) -> int:
    return int(share * index + Fraction(1, 2))


def _matching_pair(count: int, turn: int, slot: int) -> tuple[int, int]:
    """Pair `slot` of perfect matching `turn`. The count-1 matchings contain every pair once (circle method)."""
    last = count - 1
    if slot == 0:
        return last, turn
    return (turn + slot) % last, (turn - slot) % last


def _hamiltonian_pair(count: int, turn: int, slot: int) -> tuple[int, int]:
    """Pair `slot` of Hamiltonian cycle `turn` for an odd count (Walecki). The cycles contain every pair once.

    Edges are ordered as a matching that leaves one class out, the edge from that class to the first one, then a
    matching of all classes except the first. This keeps class counts within 1 of each other after every edge.
    """
    half = count // 2
    edge = 2 * slot if slot <= half else 2 * (slot - half) - 1
    return _vertex(count, turn, edge), _vertex(count, turn, (edge + 1) % count)


def _vertex(count: int, turn: int, position: int) -> int:
    """The class at a position of cycle `turn`: the last class, then a zigzag over the others, rotated by `turn`."""
    if position == 0:
        return count - 1
    step = position - 1
    zigzag = (step + 1) // 2 if step % 2 else -(step // 2)
    return (zigzag + turn) % (count - 1)
