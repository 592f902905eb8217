"""Functions that several benchmarks share: timing, and recipes that accept every image."""

import statistics
import time
from collections.abc import Callable

NO_FILTERS = dict.fromkeys(("min_area", "max_area", "max_border", "max_overlap", "duplicate_distance", "min_contrast"))
"""The `filters` section of a recipe with random weights, whose images no filter would accept."""


def median_seconds(work: Callable[[], object], times: int = 3) -> float:
    """The median time of several calls, after one warmup call."""
    work()
    spans = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        spans.append(time.perf_counter() - start)
    return statistics.median(spans)
