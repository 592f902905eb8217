"""Which classes each prompt names: endless sequences whose every prefix is balanced, readable anywhere.

Classes are positions 0..count-1. A sequence is a pure function of its seed, so position 10,000,000 costs what
position 0 does, and a longer set has the shorter one as its beginning.
"""

import hashlib
from collections.abc import Mapping, Sequence
from fractions import Fraction

MAX_OBJECTS = 4


def shuffled(count: int, *key: object) -> list[int]:
    """0..count-1 in an order that depends on `key` alone: on no library's generator, and on no version of one."""
    prefix = "/".join(str(part) for part in key)
    return sorted(range(count), key=lambda item: hashlib.sha256(f"{prefix}/{item}".encode()).digest())


class ObjectCounts:
    """How many objects the sample at each index has, so that every prefix holds each number in its share."""

    def __init__(self, shares: Mapping[int, float]) -> None:
        exact = {count: Fraction(str(share)) for count, share in sorted(shares.items()) if share > 0}
        total = sum(exact.values())
        self._steps: list[tuple[int, Fraction]] = []
        rest = Fraction(total)
        for count, share in exact.items():
            self._steps.append((count, share / rest))
            rest -= share

    def at(self, index: int) -> tuple[int, int]:
        """(number of objects, how many samples before `index` have that number)."""
        for count, share in self._steps[:-1]:
            mine = _rounded(share, index)
            if _rounded(share, index + 1) > mine:
                return count, mine
            index -= mine
        return self._steps[-1][0], index

    def before(self, index: int) -> dict[int, int]:
        """How many of the samples 0..index-1 have each number of objects."""
        result = {}
        for count, share in self._steps[:-1]:
            result[count] = _rounded(share, index)
            index -= result[count]
        result[self._steps[-1][0]] = index
        return result


class ClassSequence:
    """The classes of each sample.

    Among the samples with the same number of objects, every prefix names each class within 1 of every other, and, for
    two objects, each pair too. Where `ends` are the sizes that the set had when it was planned, the classes of samples
    with one object are ordered so that the sum over one and two objects is within 1 at the first of the `ends` as well.
    """

    def __init__(self, count: int, shares: Mapping[int, float], seed: int, ends: Sequence[int] = ()) -> None:
        self.count, self.seed = count, seed
        self.objects = ObjectCounts(shares)
        self._ends = tuple(ends)
        self._orders: dict[tuple[object, ...], list[int]] = {}

    def at(self, index: int) -> tuple[int, ...]:
        """The distinct classes of the sample at `index`, in the order in which its prompt names them."""
        objects, position = self.objects.at(index)
        if objects == 1:
            block, slot = divmod(position, self.count)
            return (self._single_block(block)[slot],)
        if objects == 2:
            return self._pair(position)
        return self._group(objects, position)

    def _order(self, count: int, *key: object) -> list[int]:
        """A remembered `shuffled`: neighbouring samples share their block's order."""
        if (count, *key) not in self._orders:
            if len(self._orders) > 256:
                self._orders.clear()
            self._orders[count, *key] = shuffled(count, self.seed, *key)
        return self._orders[count, *key]

    def _single_block(self, block: int) -> list[int]:
        """All classes once; up to each end that falls into this block, those first that the pairs named less."""
        rest = self._order(self.count, "single", block)
        chosen: list[int] = []
        for end in self._ends:
            before = self.objects.before(end)
            size = before.get(1, 0) - block * self.count - len(chosen)
            if 0 < size < len(rest):
                load = self._pair_load(before.get(2, 0))
                first = sorted(rest, key=lambda item: load[item])[:size]
                chosen += first
                rest = [item for item in rest if item not in first]
        return chosen + rest

    def _pair_load(self, pairs: int) -> list[int]:
        """How often each class was named since the pairs last were even."""
        load = [0] * self.count
        if pairs:
            period = self.count // 2 if self.count % 2 == 0 else self.count
            for position in range(pairs - pairs % period, pairs):
                for item in self._pair(position):
                    load[item] += 1
        return load

    def _pair(self, position: int) -> tuple[int, int]:
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
        """Three or more: the classes block after block, cut into groups; needs 3 * (size - 1) classes."""
        items = range(position * size, (position + 1) * size)
        return tuple(self._group_block(size, item // self.count)[item % self.count] for item in items)

    def _group_block(self, size: int, block: int) -> list[int]:
        """All classes once. Its head shares no class with the last block's tail, so no group has a class twice."""
        key = ("group", size, block)
        if (self.count, "headed", *key) in self._orders:
            return self._orders[self.count, "headed", *key]
        order, fixed = self._order(self.count, *key), self.count - (size - 1)
        previous = self._order(self.count, "group", size, block - 1)[fixed:] if block else []
        free = [item for item in order[:fixed] if item not in previous]
        head = free[: size - 1]
        result = head + [item for item in order[:fixed] if item not in head] + order[fixed:]
        self._orders[self.count, "headed", *key] = result
        return result


def _rounded(share: Fraction, index: int) -> int:
    return int(share * index + Fraction(1, 2))


def _matching_pair(count: int, turn: int, slot: int) -> tuple[int, int]:
    """Pair `slot` of the perfect matching `turn`; the count-1 matchings hold every pair once (the circle method)."""
    last = count - 1
    if slot == 0:
        return last, turn
    return (turn + slot) % last, (turn - slot) % last


def _hamiltonian_pair(count: int, turn: int, slot: int) -> tuple[int, int]:
    """Pair `slot` of Hamiltonian cycle `turn` for an odd count (Walecki); the cycles hold every pair once.

    The edges come as a matching that leaves one class out, the edge from that class to the first, then a matching of
    all classes but the first: so the classes are within 1 after each of them.
    """
    half = count // 2
    edge = 2 * slot if slot <= half else 2 * (slot - half) - 1
    return _vertex(count, turn, edge), _vertex(count, turn, (edge + 1) % count)


def _vertex(count: int, turn: int, place: int) -> int:
    if place == 0:
        return count - 1
    step = place - 1
    zigzag = (step + 1) // 2 if step % 2 else -(step // 2)
    return (zigzag + turn) % (count - 1)
