"""The verdict on a dataset in one sentence."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]

GOOD, CHECK, BAD = "good", "check", "bad"
_EXHAUSTED_SHARE = 0.01
_REDUNDANT_SHARE = 0.01
_Z = 2.575829
"""Two yields differ if the difference exceeds this many standard errors (99 %)."""


def verdict(report: Report, previous: Report | None) -> dict[str, Any]:
    """`level` (good, check, bad), `compared` with the previous report (better, worse, similar or None), the sentence.

    The sentence names what was made, the yield, the comparison, and every problem.
    """
    faults, doubts = _faults(report), _doubts(report)
    compared, comparison = _comparison(report, previous)
    level = BAD if faults else CHECK if doubts or compared == "worse" else GOOD
    problems = [*faults, *doubts]
    opening = {GOOD: "Good", CHECK: "Worth a look", BAD: "Needs attention"}[level]
    ending = "; ".join(problems) if problems else "nothing unusual was found"
    sentence = f"{opening}: {_completeness(report)}{_yield_text(report)}{comparison}; {ending}."
    return {"level": level, "compared": compared, "sentence": sentence, "problems": problems}


def _completeness(report: Report) -> str:
    data = report["dataset"]
    if data["complete"] and data["samples"] == data["n"]:
        return f"all {data['n']:,} samples are complete" if data["n"] > 1 else "its only sample is complete"
    shards = "" if data["complete"] else f" in {data['shards']:,} of {data['shards_planned']:,} shards"
    return f"{data['samples']:,} of {data['n']:,} samples{shards}"


def _yield_text(report: Report) -> str:
    share = report["funnel"]["yield"]["share"]
    return "" if share is None else f", with a yield of {100 * share:.1f} %"


def _comparison(report: Report, previous: Report | None) -> tuple[str | None, str]:
    if previous is None:
        return None, ""
    now, before = report["funnel"]["yield"], previous["funnel"]["yield"]
    if now["share"] is None or before["share"] is None:
        return None, ""
    points = 100 * (now["share"] - before["share"])
    if not differs(now, before):
        return "similar", ", similar to the previous night"
    direction = "better" if points > 0 else "worse"
    return direction, f", {direction} than the previous night by {abs(points):.1f} points"


def differs(first: Report, second: Report) -> bool:
    """Whether two proportions differ by more than chance, by a pooled z-test at 99 %."""
    total = first["of"] + second["of"]
    pooled = (first["count"] + second["count"]) / total
    error = math.sqrt(pooled * (1 - pooled) * (1 / first["of"] + 1 / second["of"]))
    return bool(abs(first["share"] - second["share"]) > _Z * error)


def _faults(report: Report) -> list[str]:
    data, run, faults = report["dataset"], report["run"], []
    if not data["samples"]:
        faults.append("there are no samples")
    if run["damaged"]:
        faults.append(f"{_number(len(run['damaged']), 'shard')} cannot be read")
    if run["quarantined"]:
        faults.append(f"{_number(len(run['quarantined']), 'shard')} failed repeatedly")
    return faults


def _doubts(report: Report) -> list[str]:
    data, doubts = report["dataset"], []
    if data["exhausted"] > _EXHAUSTED_SHARE * max(1, data["exhausted"] + data["samples"]):
        doubts.append(f"{_number(data['exhausted'], 'sample')} exhausted all attempts")
    empty = [row["name"] for row in report["classes"] if row["planned"] and not row["made"]]
    if empty and data["complete"]:
        doubts.append(f"{_number(len(empty), 'class', 'classes')} without a sample")
    redundant, total = report["duplicates"]["redundant"], report["duplicates"]["total"]
    if redundant > _REDUNDANT_SHARE * max(1, total):
        doubts.append(f"{100 * redundant / total:.1f} % of the images are near-duplicates of others")
    if report["drift"]["over"]:
        doubts.append(f"unusual drift in {_listed([title.lower() for title in report['drift']['over']])}")
    return doubts


def _number(count: int, singular: str, plural: str = "") -> str:
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def _listed(names: Sequence[str]) -> str:
    shown = list(names[:3]) + ([f"{len(names) - 3} more measures"] if len(names) > 3 else [])
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
