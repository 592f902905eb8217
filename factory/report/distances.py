"""Distances between the same measure of two datasets, as effect sizes that do not depend on the number of samples."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from factory.report.features import squared_mmd

Floats = NDArray[np.float64]


class Kind(Protocol):
    """A kind of measure: how to parse, compare and average it. `parse` raises if the data is missing or invalid."""

    metric: str
    floor: float
    """Distances below this are never drift."""

    def parse(self, data: Any) -> Any:
        """The measure from the data of a report."""

    def distance(self, now: Any, before: Any) -> float:
        """The effect size, 0 for equal measures."""

    def median(self, values: Sequence[Any]) -> Any:
        """The typical measure of several reports."""


class Counts:
    """Counts by category: Jensen-Shannon divergence in bits, from 0 (equal shares) to 1 (nothing in common)."""

    metric, floor = "Jensen-Shannon divergence", 0.005

    def parse(self, data: Mapping[str, Any]) -> dict[str, float]:
        """Shares by category."""
        return _normalised({str(name): float(count) for name, count in data.items()})

    def distance(self, now: dict[str, float], before: dict[str, float]) -> float:
        """The divergence of two distributions."""
        names = sorted(now.keys() | before.keys())
        p, q = (np.array([shares.get(name, 0.0) for name in names]) for shares in (now, before))
        return max(0.0, _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2)

    def median(self, values: Sequence[dict[str, float]]) -> dict[str, float]:
        """The median share of each category, normalised."""
        names = sorted({name for shares in values for name in shares})
        return _normalised({name: float(np.median([shares.get(name, 0.0) for shares in values])) for name in names})


@dataclass(frozen=True)
class ScoreShares:
    """A histogram as shares, with the standard deviation of the values."""

    low: float
    high: float
    shares: Floats
    sd: float


class Scores:
    """Scores as a histogram: Wasserstein distance between the histograms, in standard deviations of the earlier one."""

    metric, floor = "Wasserstein / sigma", 0.1

    def parse(self, data: Mapping[str, Any]) -> ScoreShares:
        """The histogram of a report."""
        counts = np.array(data["counts"], np.float64)
        return ScoreShares(float(data["low"]), float(data["high"]), counts / _positive(counts.sum()), float(data["sd"]))

    def distance(self, now: ScoreShares, before: ScoreShares) -> float:
        """The distance of two histograms with the same bins; ValueError for other bins."""
        if (now.low, now.high, len(now.shares)) != (before.low, before.high, len(before.shares)):
            raise ValueError("the histograms have different bins")
        width = (now.high - now.low) / len(now.shares)
        moved = float(np.abs(np.cumsum(now.shares - before.shares)).sum()) * width
        return moved / max(before.sd, width / math.sqrt(12))  # a bin cannot resolve a smaller deviation

    def median(self, values: Sequence[ScoreShares]) -> ScoreShares:
        """The median share of each bin, normalised, and the median deviation."""
        shares = np.median(np.stack([value.shares for value in values]), 0)
        sd = float(np.median([value.sd for value in values]))
        return ScoreShares(values[0].low, values[0].high, shares / _positive(shares.sum()), sd)


class Share:
    """A proportion: Cohen's h, the difference of the arcsines; 0.2 is small, 0.5 medium, 0.8 large."""

    metric, floor = "Cohen's h", 0.05

    def parse(self, data: float) -> float:
        """A share from 0 to 1."""
        if not 0 <= data <= 1:
            raise ValueError(f"{data} is not a share")
        return float(data)

    def distance(self, now: float, before: float) -> float:
        """The absolute value of Cohen's h."""
        return abs(2 * math.asin(math.sqrt(now)) - 2 * math.asin(math.sqrt(before)))

    def median(self, values: Sequence[float]) -> float:
        """The median share."""
        return float(np.median(values))


class Rate:
    """A speed: the absolute logarithm of the ratio, to base 2; 1 is twice or half as fast."""

    metric, floor = "log2 of the ratio", 0.15

    def parse(self, data: float) -> float:
        """A positive number."""
        return float(_positive(data))

    def distance(self, now: float, before: float) -> float:
        """The absolute log ratio."""
        return abs(math.log2(now / before))

    def median(self, values: Sequence[float]) -> float:
        """The median rate."""
        return float(np.median(values))


class Features:
    """The mean features of images: the squared maximum mean discrepancy, times 1000; see `factory.report.features`."""

    metric, floor = "1000 MMD²", 1.0

    def parse(self, data: Mapping[str, Any]) -> tuple[str, int, Floats]:
        """(network, images, mean features)."""
        return str(data["model"]), int(_positive(data["images"])), np.array(data["mean"], np.float64)

    def distance(self, now: tuple[str, int, Floats], before: tuple[str, int, Floats]) -> float:
        """The discrepancy; ValueError if the features come from different networks."""
        if now[0] != before[0]:
            raise ValueError("the features come from different networks")
        return max(0.0, 1000 * squared_mmd(now[2], now[1], before[2], before[1]))

    def median(self, values: Sequence[tuple[str, int, Floats]]) -> tuple[str, int, Floats]:
        """The mean over all images of the reports: a median of features would not be the mean of any images."""
        if len({model for model, _, _ in values}) > 1:
            raise ValueError("the features come from different networks")
        counts = np.array([count for _, count, _ in values])
        mean = np.average(np.stack([mean for _, _, mean in values]), 0, counts)
        return values[0][0], int(counts.sum()), mean


def _entropy(shares: Floats) -> float:
    positive = shares[shares > 0]
    return float(-(positive * np.log2(positive)).sum())


def _normalised(weights: Mapping[str, float]) -> dict[str, float]:
    total = _positive(sum(weights.values()))
    return {name: weight / total for name, weight in weights.items()}


def _positive(value: Any) -> Any:
    if not value > 0:
        raise ValueError(f"expected a number above 0, got {value}")
    return value
