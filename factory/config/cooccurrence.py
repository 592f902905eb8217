"""Classes that occur together: tables of pairs, and balanced groups of classes that are drawn by these tables."""

import csv
import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Literal

from factory.config.class_file import split_row
from factory.config.vocabulary import Vocabulary, coco
from factory.errors import UserError
from factory.files.text import read_lines

Table = Mapping[str, Mapping[str, float]]
"""The weight of each pair of classes that occur together; each pair is listed once, in either order."""

_FORM = "a row has two class names and a weight, such as `dog,frisbee,348`"
_ROUNDS = 50
_SCALE = 2**24
_LARGEST = 1e50
"""Larger weights, and smaller ones than its inverse, overflow in `balanced`."""


def read_table(path: str | Path, vocabulary: Vocabulary) -> dict[str, dict[str, float]]:
    """Read a CSV file of pairs: `class,class,weight`, where the first row may be a header.

    Blank lines and lines starting with # are skipped. A pair may be listed in both orders with the same weight. Pairs
    that are not listed have the weight 0. Raises UserError for a class that is not in the vocabulary, for a weight that
    is not a number of at least 0, and for a pair with two weights.
    """
    table: dict[str, dict[str, float]] = {}
    names = _Names(vocabulary)
    lines = [(number, line) for number, line in read_lines(path, "co-occurrence table") if not line.startswith("#")]
    for position, (number, line) in enumerate(lines):
        where = f"{path}, line {number}"
        try:
            cells = [cell.strip() for cell in split_row(line)]
        except csv.Error as error:
            raise UserError(f"{where}: {_FORM}, got {line[:80]!r} ({error}).") from error
        if len(cells) != 3:
            raise UserError(f"{where}: {_FORM}, got {line[:80]!r}.")
        if position == 0 and not _is_number(cells[2]) and vocabulary.find(cells[0]) is None:
            continue
        if not _is_number(cells[2]):
            raise UserError(f"{where}: {_FORM}; {cells[2][:40]!r} is not a number of at least 0.")
        first, second = names.ordered(cells[0], cells[1], where)
        weight = float(cells[2])
        if table.setdefault(first, {}).setdefault(second, weight) != weight:
            raise UserError(
                f"{where}: {first} and {second} have the weight {weight:g} here and {table[first][second]:g} in an "
                f"earlier row; list each pair once."
            )
    if not table:
        raise UserError(f"the co-occurrence table {path} is empty; {_FORM}.")
    return table


def pair_weights(
    table: Literal["coco"] | Table, vocabulary: Vocabulary, names: Sequence[str]
) -> tuple[tuple[float, ...], ...]:
    """The symmetric matrix of weights between the classes `names`, with zeros on its diagonal.

    Raises ValueError if `table` is `coco` and a class is not a COCO class, if a custom table is invalid, or if a class
    occurs with none of the others.
    """
    positions = {name: position for position, name in enumerate(names)}
    if table == "coco":
        rows, positions = _coco_table(), _positions_in_coco(vocabulary, names)
    else:
        rows = _checked(table, vocabulary)
    matrix = [[0.0] * len(names) for _ in names]
    for first, partners in rows.items():
        for second, weight in partners.items():
            if first in positions and second in positions:
                if weight and not 1 / _LARGEST <= weight <= _LARGEST:
                    raise ValueError(
                        f"the weight of {first} and {second} must be 0, or from {1 / _LARGEST:g} to {_LARGEST:g}, got "
                        f"{weight:g}"
                    )
                row, column = positions[first], positions[second]
                matrix[row][column] = matrix[column][row] = float(weight)
    alone = [name for name, row in zip(names, matrix, strict=True) if not any(row)]
    if alone:
        raise ValueError(
            f"the co-occurrence table has no pair of {alone[0]!r} with another class of the dataset; list at least one "
            f"pair of each class, with a weight above 0"
        )
    return tuple(map(tuple, matrix))


@functools.lru_cache(8)
def balanced(matrix: tuple[tuple[float, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """Scale rows and columns by the same factors until all have nearly the same sum; as integers.

    Each turn names every class once. Without scaling, classes that occur with many others, such as persons, would be
    used up by the first groups of each turn. Sums are exact and the result is rounded, so it is the same on every
    machine.
    """
    factors = [1.0 / max(row) for row in matrix]
    for _ in range(_ROUNDS):
        sums = [math.fsum(weight * factor for weight, factor in zip(row, factors, strict=True)) for row in matrix]
        factors = [math.sqrt(factor / total) for factor, total in zip(factors, sums, strict=True)]
    scaled = [
        [weight * row_factor * factor for weight, factor in zip(row, factors, strict=True)]
        for row, row_factor in zip(matrix, factors, strict=True)
    ]
    return tuple(tuple(max(1, round(value * _SCALE)) if value else 0 for value in row) for row in scaled)


class WeightedGroups:
    """Groups of classes, drawn by the weights of their pairs, with random access.

    Groups are cut from turns that name every class once, so class counts differ by at most 1 in every prefix. Within a
    turn, the first class of a group is drawn evenly, and each further one in proportion to the product of its weights
    with the classes that the group has. A pair with the weight 0 occurs only if the turn has no other class left.
    """

    def __init__(self, weights: Sequence[Sequence[int]], seed: int) -> None:
        self._weights, self._seed = weights, seed
        self._cycles: dict[tuple[int, int], list[tuple[int, ...]]] = {}

    def at(self, size: int, position: int) -> tuple[int, ...]:
        """The group at a position among the groups of `size` classes."""
        cycle, slot = divmod(position, math.lcm(len(self._weights), size) // size)
        groups = self._cycles.get((size, cycle))
        if groups is None:
            groups = self._cycle(size, cycle)
            if len(self._cycles) > 64:
                self._cycles.clear()
            self._cycles[size, cycle] = groups
        return groups[slot]  # not looked up again: another thread may have cleared the cache

    def _cycle(self, size: int, cycle: int) -> list[tuple[int, ...]]:
        """The fewest whole groups that consist of whole turns."""
        count = len(self._weights)
        groups: list[tuple[int, ...]] = []
        group: list[int] = []
        available: list[int] = []
        for draw_number in range(math.lcm(count, size)):
            available = available or list(range(count))
            candidates = [index for index in available if index not in group]
            draw = hashlib.sha256(f"{self._seed}/together/{size}/{cycle}/{draw_number}".encode()).digest()[:8]
            chosen = _drawn(candidates, self._scores(group, candidates), int.from_bytes(draw))
            available.remove(chosen)
            group.append(chosen)
            if len(group) == size:
                groups.append(tuple(group))
                group = []
        return groups

    def _scores(self, group: Sequence[int], candidates: Sequence[int]) -> list[int]:
        products = [math.prod(self._weights[member][index] for member in group) for index in candidates]
        if any(products):
            return products
        sums = [sum(self._weights[member][index] for member in group) for index in candidates]
        return sums if any(sums) else [1] * len(candidates)


def _drawn(candidates: Sequence[int], scores: Sequence[int], draw: int) -> int:
    """The candidate at a 64-bit draw, in proportion to the scores."""
    point = draw * sum(scores) >> 64
    for candidate, score in zip(candidates, scores, strict=True):
        point -= score
        if point < 0:
            return candidate
    raise AssertionError(f"a draw of {draw} is beyond the scores")


def _checked(table: Table, vocabulary: Vocabulary) -> dict[str, dict[str, float]]:
    """The table of a recipe with official names; ValueError if a pair is listed twice."""
    result: dict[str, dict[str, float]] = {}
    names = _Names(vocabulary)
    for name, partners in table.items():
        for partner, weight in partners.items():
            first, second = names.ordered(name, partner, "cooccurrence")
            if second in result.setdefault(first, {}):
                raise ValueError(f"the pair of {first} and {second} is listed twice")
            result[first][second] = weight
    return result


class _Names:
    """Official names by any spelling."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._resolve = vocabulary.resolve
        self._positions = {name: position for position, name in enumerate(vocabulary.names)}

    def ordered(self, first: str, second: str, where: str) -> tuple[str, str]:
        """The names of two classes in the order of the vocabulary; raises UserError if they are the same class."""
        names = [self._resolve(name, where).name for name in (first, second)]
        if names[0] == names[1]:
            raise UserError(f"{where}: a pair requires two different classes, got {first} and {second}.")
        names.sort(key=self._positions.__getitem__)
        return names[0], names[1]


def _positions_in_coco(vocabulary: Vocabulary, names: Sequence[str]) -> dict[str, int]:
    """The position of each class in COCO; ValueError for a class that is not in COCO."""
    result = {}
    for position, name in enumerate(names):
        entry = coco().find(vocabulary.resolve(name).display)
        if entry is None:
            raise ValueError(
                f"the co-occurrence table `coco` has no class {name!r}; give a CSV file with the pairs of your classes"
            )
        result[entry.name] = position
    return result


@functools.cache
def _coco_table() -> dict[str, dict[str, float]]:
    with as_file(files("factory.config") / "data" / "coco_cooccurrence.csv") as path:
        return read_table(path, coco())


def _is_number(text: str) -> bool:
    try:
        return 0 <= float(text) < math.inf
    except ValueError:
        return False
