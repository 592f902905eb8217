"""The yield of a dataset: how many attempts each filter rejected, with confidence intervals."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from factory.generation.filters import REASONS

Z = 1.959964
"""The two-sided 95 % quantile of the normal distribution."""


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % confidence interval of a proportion, by Wilson's score method; (0, 1) without trials."""
    if not trials:
        return 0.0, 1.0
    share, spread = successes / trials, Z**2 / trials
    centre = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def proportion(successes: int, trials: int) -> dict[str, Any]:
    """A share with its counts and its 95 % interval; the share is None without trials."""
    low, high = wilson(successes, trials)
    share = round(successes / trials, 6) if trials else None
    return {"count": successes, "of": trials, "share": share, "low": round(low, 6), "high": round(high, 6)}


def in_order_of_filters(reasons: Iterable[str]) -> list[str]:
    """Rejection reasons in the order of the filters; unknown ones, of other versions, come last."""
    known = set(reasons)
    return [reason for reason in REASONS if reason in known] + sorted(known - set(REASONS))


def funnel(attempts: int, rejected: Mapping[str, int]) -> dict[str, Any]:
    """The attempts that reached each filter, in the order of the filters, and the share that passed it.

    An attempt counts for the first filter that rejected it.
    """
    steps, remaining = [], attempts
    for reason in in_order_of_filters(rejected):
        count = rejected[reason]
        steps.append(
            {
                "reason": reason,
                "entered": remaining,
                "rejected": count,
                "of_all": proportion(count, attempts),
                "passed": proportion(max(0, remaining - count), remaining),
            }
        )
        remaining -= count
    return {"attempts": attempts, "yield": proportion(max(0, remaining), attempts), "steps": steps}
