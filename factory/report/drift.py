"""Drift: the distance of a dataset from earlier ones, and the threshold from which on it is unusual."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from factory.report.distances import Counts, Features, Kind, Rate, Scores, Share

Report = Mapping[str, Any]

MEDIAN_NIGHTS, MEDIAN_LEAST = 7, 3
"""Reports in the median, and the minimum number of reports."""
LEARNING_NIGHTS, LEARNING_LEAST = 14, 5
"""Reports from which thresholds are learned, and the minimum number of distances."""
_DEVIATIONS = 6.0
_FEW_NIGHTS = 5.0
_MAD_TO_SIGMA = 1.4826
_INVALID = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError)


@dataclass(frozen=True)
class Measure:
    """A quantity that is compared: its kind and where a report holds it."""

    name: str
    title: str
    kind: Kind
    find: Callable[[Report], Any]

    def read(self, report: Report) -> Any | None:
        """The measure of a report; None if it has none."""
        try:
            return self.kind.parse(self.find(report))
        except _INVALID:
            return None

    def distance(self, now: Any | None, before: Any | None) -> float | None:
        """The effect size; None if it cannot be computed."""
        if now is None or before is None:
            return None
        try:
            return self.kind.distance(now, before)
        except _INVALID:
            return None

    def median(self, reports: Sequence[Report]) -> Any | None:
        """The typical measure of the last `MEDIAN_NIGHTS` reports; None if there are too few."""
        values = [value for report in reports[-MEDIAN_NIGHTS:] if (value := self.read(report)) is not None]
        if len(values) < MEDIAN_LEAST:
            return None
        try:
            return self.kind.median(values)
        except _INVALID:
            return None


def _scores(name: str) -> Callable[[Report], Any]:
    return lambda report: report["images"]["scores"][name]


MEASURES = (
    Measure("yield", "Yield", Share(), lambda report: report["funnel"]["yield"]["share"]),
    Measure("outcomes", "Outcomes of attempts", Counts(), lambda report: _outcomes(report["funnel"])),
    Measure("classes", "Classes", Counts(), lambda report: {row["name"]: row["made"] for row in report["classes"]}),
    Measure("per_image", "Objects per image", Counts(), lambda report: report["objects"]["per_image"]),
    Measure("sizes", "Object sizes", Counts(), lambda report: report["objects"]["sizes"]),
    Measure("area", "Object area", Scores(), lambda report: report["objects"]["area"]),
    Measure("centres", "Object centres", Counts(), lambda report: _cells(report["objects"]["centres"])),
    Measure("luminance", "Luminance", Scores(), _scores("luminance")),
    Measure("contrast", "Contrast", Scores(), _scores("contrast")),
    Measure("dark", "Dark clipping", Scores(), _scores("dark")),
    Measure("bright", "Bright clipping", Scores(), _scores("bright")),
    Measure("sharpness", "Sharpness", Scores(), _scores("sharpness")),
    Measure("confidence", "Mask confidence", Scores(), lambda report: report["agreement"]["confidence"]),
    Measure("detector_iou", "Detector agreement", Scores(), lambda report: report["agreement"]["detector_iou"]),
    Measure("duplicates", "Near-duplicates", Share(), lambda report: _redundant(report["duplicates"])),
    Measure("features", "Image features", Features(), lambda report: report["features"]),
    Measure("speed", "Samples per second", Rate(), lambda report: report["time"]["samples_per_second"]),
)


def _outcomes(data: Report) -> dict[str, int]:
    return {"accepted": data["yield"]["count"]} | {step["reason"]: step["rejected"] for step in data["steps"]}


def _cells(rows: Sequence[Sequence[int]]) -> dict[str, int]:
    return {f"{row}/{column}": count for row, counts in enumerate(rows) for column, count in enumerate(counts)}


def _redundant(data: Report) -> float:
    return float(data["redundant"] / data["total"])


def drift(report: Report, previous: Sequence[Report], compare: Report | None = None) -> dict[str, Any]:
    """Compare a report with earlier ones (oldest first) and with that of another dataset.

    Each row holds the effect size against the previous report, the median of the last seven, and `compare`; `over`
    marks distances above the threshold learned from the last 14 reports.
    """
    rows = [_row(measure, report, previous, compare) for measure in MEASURES]
    return {
        "nights": len(previous),
        "median_nights": min(len(previous), MEDIAN_NIGHTS) if len(previous) >= MEDIAN_LEAST else 0,
        "compared": None if compare is None else compare["dataset"]["name"],
        "measures": rows,
        "over": sorted({row["title"] for row in rows if row["previous"]["over"] or row["median"]["over"]}),
        "settings": _changed_settings(report, previous[-1]) if previous else [],
        "compare_settings": _changed_settings(report, compare) if compare else [],
        "notes": _notes(len(previous)),
        "history": [_history(recent) for recent in [*previous[-LEARNING_NIGHTS:], report]],
    }


def _row(measure: Measure, report: Report, previous: Sequence[Report], compare: Report | None) -> dict[str, Any]:
    now, recent = measure.read(report), previous[-LEARNING_NIGHTS:]
    before = measure.read(previous[-1]) if previous else None
    pairs = [(measure.read(recent[k]), measure.read(recent[k - 1])) for k in range(1, len(recent))]
    medians = [(measure.read(recent[k]), measure.median(recent[:k])) for k in range(MEDIAN_LEAST, len(recent))]
    distance = measure.distance(now, measure.read(compare)) if compare is not None else None
    return {
        "name": measure.name,
        "title": measure.title,
        "metric": measure.kind.metric,
        "previous": _judged(measure, measure.distance(now, before), pairs),
        "median": _judged(measure, measure.distance(now, measure.median(previous)), medians),
        "compare": {"distance": _rounded(distance)},
    }


def _judged(measure: Measure, distance: float | None, earlier: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
    """A distance with the threshold learned from the distances of earlier nights."""
    distances = [value for now, before in earlier if (value := measure.distance(now, before)) is not None]
    threshold = learned_threshold(distances, measure.kind.floor)
    return {
        "distance": _rounded(distance),
        "threshold": _rounded(threshold),
        "learned_from": len(distances),
        "over": distance is not None and threshold is not None and distance > threshold,
    }


def learned_threshold(distances: Sequence[float], floor: float) -> float | None:
    """Median plus six robust standard deviations of earlier distances, at least `floor`; None if there are too few.

    The deviation is estimated from the median absolute deviation, so one unusual night does not raise the threshold.
    With few distances, the estimate is uncertain and the margin is wider: 12 deviations for 5 distances, 8 for 13. A
    usual night then exceeds the threshold of a measure in at most 1 to 2 % of cases.
    """
    if len(distances) < LEARNING_LEAST:
        return None
    middle = float(np.median(distances))
    deviation = _MAD_TO_SIGMA * float(np.median(np.abs(np.array(distances) - middle)))
    margin = _DEVIATIONS * (1 + _FEW_NIGHTS / len(distances))
    return max(floor, middle + margin * deviation)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


def _notes(nights: int) -> list[str]:
    """What is missing because there are too few earlier reports."""
    if not nights:
        return ["There are no reports of earlier nights."]
    notes = []
    if nights < MEDIAN_LEAST:
        notes.append(f"The median of seven nights needs at least {MEDIAN_LEAST} earlier reports; there are {nights}.")
    elif nights < MEDIAN_NIGHTS:
        notes.append(f"There are only {nights} earlier reports, so the median of seven is the median of {nights}.")
    if nights <= LEARNING_LEAST:
        notes.append(
            f"Thresholds need {LEARNING_LEAST + 1} earlier reports; there are {nights}, so no distance is judged yet."
        )
    elif nights < MEDIAN_LEAST + LEARNING_LEAST:
        notes.append(
            f"Thresholds for the median need {MEDIAN_LEAST + LEARNING_LEAST} earlier reports; there are {nights}."
        )
    return notes


def _changed_settings(report: Report, other: Report) -> list[str]:
    """The settings that differ, such as "generator.steps: 20 → 30"."""
    now, before = report["dataset"]["settings"], other["dataset"]["settings"]
    names = [*now, *(name for name in before if name not in now)]
    return [
        f"{name}: {before.get(name)} → {now.get(name)}"[:200] for name in names if now.get(name) != before.get(name)
    ]


def _history(report: Report) -> dict[str, Any]:
    """The key figures of one report, for the trend lines."""
    figures: dict[str, Callable[[], Any]] = {
        "name": lambda: report["dataset"]["name"],
        "created": lambda: report["created"],
        "samples": lambda: report["dataset"]["samples"],
        "yield": lambda: report["funnel"]["yield"]["share"],
        "confidence": lambda: report["agreement"]["confidence"]["mean"],
        "duplicates": lambda: round(_redundant(report["duplicates"]), 6),
        "samples_per_second": lambda: report["time"]["samples_per_second"],
    }
    values: dict[str, Any] = {}
    for name, find in figures.items():
        try:
            values[name] = find()
        except _INVALID:
            values[name] = None
    return values
