"""Histograms with fixed bins and exact moments, which represent the scores of any number of samples."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILES = (5, 50, 95)


@dataclass(frozen=True)
class Scale:
    """The bins of a score: `bins` equal ones from `low` to `high`. Values outside count in the first or last bin."""

    low: float
    high: float
    bins: int

    def edges(self) -> NDArray[np.float64]:
        """The edges of the bins, float64 (bins + 1,)."""
        return np.linspace(self.low, self.high, self.bins + 1)


@dataclass
class Histogram:
    """Counts per bin, with the exact mean, standard deviation, minimum and maximum of the values added."""

    scale: Scale
    counts: NDArray[np.int64] = field(init=False)
    total: int = 0
    sum: float = 0.0
    squares: float = 0.0
    minimum: float = np.inf
    maximum: float = -np.inf

    def __post_init__(self) -> None:
        self.counts = np.zeros(self.scale.bins, np.int64)

    def add(self, values: NDArray[np.floating[Any]]) -> None:
        """Add values of any shape; values that are not finite were not measured and are skipped."""
        finite = values[np.isfinite(values)].astype(np.float64)
        if not finite.size:
            return
        clipped = np.clip(finite, self.scale.low, self.scale.high)
        self.counts += np.histogram(clipped, self.scale.edges())[0]
        self.total += int(finite.size)
        self.sum += float(finite.sum())
        self.squares += float(np.square(finite).sum())
        self.minimum, self.maximum = min(self.minimum, float(finite.min())), max(self.maximum, float(finite.max()))

    def to_dict(self) -> dict[str, Any]:
        """The histogram as plain data. The percentiles p5, p50 and p95 are interpolated within their bins."""
        data: dict[str, Any] = {
            "low": self.scale.low,
            "high": self.scale.high,
            "counts": self.counts.tolist(),
            "total": self.total,
        }
        if not self.total:
            return data
        mean = self.sum / self.total
        data |= {
            "mean": round(mean, 6),
            "sd": round(max(0.0, self.squares / self.total - mean**2) ** 0.5, 6),
            "min": round(self.minimum, 6),
            "max": round(self.maximum, 6),
        }
        return data | {f"p{percent}": round(self._quantile(percent / 100), 6) for percent in QUANTILES}

    def _quantile(self, share: float) -> float:
        shares = np.concatenate([[0.0], np.cumsum(self.counts) / self.total])
        index = int(np.searchsorted(shares[1:], share))
        before, within = shares[index], shares[index + 1] - shares[index]
        edges = self.scale.edges()
        value = edges[index] + (edges[index + 1] - edges[index]) * ((share - before) / within if within else 0.0)
        return float(min(max(value, self.minimum), self.maximum))
