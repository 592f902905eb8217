"""Drift with no, one and many earlier nights, and the verdict that follows from it."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factory.config.recipe import make_recipe
from factory.dataset.storage import Store
from factory.errors import UserError
from factory.report.drift import MEASURES, drift
from factory.report.earlier import read_report
from factory.report.measure import settings
from factory.report.run import write_report
from factory.report.verdict import verdict
from tests.support.report_datasets import make_report_set


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A report with features of all images."""
    folder = tmp_path_factory.mktemp("drift")
    store, _ = make_report_set(folder / "set")
    return write_report(store, str(folder / "report"))


def night(base: dict[str, Any], seed: int, darker: int = 0, lower: int = 0) -> dict[str, Any]:
    """A report of 2,000 images whose histograms and counts vary by chance, as those of nights do."""
    report, rng = copy.deepcopy(base), np.random.default_rng(seed)
    accepted = int(rng.binomial(6000, 0.6)) - lower
    report["funnel"]["yield"] |= {"count": accepted, "of": 6000, "share": accepted / 6000}
    report["funnel"]["steps"][0]["rejected"] = 6000 - accepted
    for row, count in zip(report["classes"], rng.multinomial(2000, [0.2] * 5), strict=True):
        row["made"] = int(count)
    for name, centre in (("luminance", 120 - darker), ("contrast", 40), ("sharpness", 2)):
        data = report["images"]["scores"][name]
        values = rng.normal(centre, centre / 5, 2000)
        edges = np.linspace(data["low"], data["high"], len(data["counts"]) + 1)
        data |= {"counts": np.histogram(values, edges)[0].tolist(), "sd": centre / 5, "mean": centre}
    report["time"]["samples_per_second"] = float(rng.uniform(0.9, 1.1))
    return report


def rows(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in data["measures"]}


def test_without_an_earlier_night_there_is_nothing_to_compare(base: dict[str, Any]) -> None:
    data = base["drift"]
    assert data["notes"] == ["There are no reports of earlier nights."]
    assert (data["nights"], data["median_nights"], data["over"]) == (0, 0, [])
    assert all(row["previous"]["distance"] is None for row in data["measures"])
    assert "night" not in base["verdict"]["sentence"]


def test_every_measure_is_read_and_equal_to_itself(base: dict[str, Any]) -> None:
    for measure in MEASURES:
        assert measure.distance(measure.read(base), measure.read(base)) == pytest.approx(0, abs=1e-9), measure.name


def test_one_earlier_night_gives_distances_without_thresholds(base: dict[str, Any]) -> None:
    data = drift(night(base, 1, darker=60), [night(base, 2)])
    luminance = rows(data)["luminance"]
    assert luminance["previous"]["distance"] == pytest.approx(60 / 24, rel=0.1)
    assert luminance["previous"]["threshold"] is None
    assert luminance["median"]["distance"] is None
    assert data["over"] == []
    assert data["notes"] == [
        "The median of seven nights needs at least 3 earlier reports; there are 1.",
        "Thresholds need 6 earlier reports; there are 1, so no distance is judged yet.",
    ]


def test_eight_earlier_nights_tell_a_usual_night_from_a_dark_one(base: dict[str, Any]) -> None:
    earlier = [night(base, seed) for seed in range(8)]
    for darker, over in ((0, []), (20, ["Luminance"])):
        data = drift(night(base, 100, darker), earlier)
        assert (data["median_nights"], data["notes"]) == (7, [])
        assert data["over"] == over
        row = rows(data)["luminance"]
        assert row["previous"]["learned_from"] == 7
        assert row["median"]["learned_from"] == 5
        assert row["median"]["over"] is row["previous"]["over"] is bool(over)


def test_the_verdict_compares_the_yield_with_the_previous_night(base: dict[str, Any]) -> None:
    before = night(base, 1)
    for lower, expected in ((0, "similar"), (400, "worse"), (-400, "better")):
        report = night(base, 1, lower=lower)
        found = verdict(report | {"drift": drift(report, [before])}, before)
        assert found["compared"] == expected
    assert "better than the previous night by 6.7 points" in found["sentence"]


def test_changed_settings_and_reports_of_other_networks_are_named(base: dict[str, Any]) -> None:
    other = night(base, 1)
    other["dataset"]["settings"]["generator.steps"] = 50
    other["features"]["model"] = "another"
    data = drift(base, [other], compare=other)
    assert [text.partition(":")[0] for text in data["settings"]] == ["generator.steps"]
    assert data["compare_settings"] == data["settings"]
    assert rows(data)["features"]["previous"]["distance"] is None
    assert rows(data)["yield"]["compare"]["distance"] == rows(data)["yield"]["previous"]["distance"]


def test_another_list_of_the_same_length_is_another_setting(base: dict[str, Any]) -> None:
    """Such as the prompts of another file, or ten other classes."""
    names = [f"class {k}" for k in range(11)]
    first, second, same = (
        {**base, "dataset": {**base["dataset"], "settings": settings(make_recipe({"n": 1, "classes": classes}))}}
        for classes in (names[:10], names[1:], names[:10])
    )
    assert drift(first, [same])["settings"] == []
    (text,) = drift(first, [second])["settings"]
    assert re.fullmatch(r"classes: 10 entries, SHA-256 (\w{12}) → 10 entries, SHA-256 (?!\1)\w{12}", text)


def test_reports_are_read_from_files_and_broken_ones_are_named(base: dict[str, Any], tmp_path: Path) -> None:
    store, _ = make_report_set(tmp_path / "set", content=1)
    good, broken, foreign = (tmp_path / name for name in ("good.json", "broken.json", "foreign.json"))
    good.write_text(json.dumps(base))
    broken.write_text("{")
    foreign.write_text('{"format": 99, "dataset": {"name": "a", "settings": {}}}')
    invalid = copy.deepcopy(base)
    invalid["time"]["samples_per_second"] = "<b>fast"
    (tmp_path / "invalid.json").write_text(json.dumps(invalid))
    files = ("broken.json", "foreign.json", "missing.json", "invalid.json", "good.json")
    previous = [(Store(str(tmp_path)), name) for name in files]
    report = write_report(store, str(tmp_path / "out"), previous, compare=str(good), features=0)
    data = report["drift"]
    assert (data["nights"], data["compared"]) == (1, base["dataset"]["name"])
    expected = ("is not a report", "has the format 99", "there is no report", "is not a report")
    assert all(part in text for part, text in zip(expected, data["ignored"], strict=True))
    assert rows(data)["luminance"]["compare"]["distance"] == rows(data)["luminance"]["previous"]["distance"] > 0
    assert [entry["name"] for entry in data["history"]] == [base["dataset"]["name"], report["dataset"]["name"]]


def test_the_example_of_the_documentation_measures_drift(
    base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It passed paths, and ended in a traceback."""
    monkeypatch.chdir(tmp_path)
    make_report_set(tmp_path / "out", content=1)
    for night in ("2026-11-23", "2026-11-24"):
        (tmp_path / night / "report").mkdir(parents=True)
        (tmp_path / night / "report" / "report.json").write_text(json.dumps(base))
    page = Path(__file__).parents[2] / "docs/report.md"
    (example,) = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    exec(example, {})
    drift_of = json.loads((tmp_path / "report/report.json").read_text())["drift"]
    assert (drift_of["nights"], drift_of["ignored"]) == (2, [])


@pytest.mark.parametrize("attempts", [{"of": 0}, {"count": 10**6}, {"count": None}, {"of": None}])
def test_an_earlier_report_with_an_impossible_yield_is_named(
    base: dict[str, Any], tmp_path: Path, attempts: dict[str, Any]
) -> None:
    """The verdict divides by the attempts."""
    earlier = copy.deepcopy(base)
    earlier["funnel"]["yield"] |= attempts
    (tmp_path / "report.json").write_text(json.dumps(earlier))
    with pytest.raises(UserError, match="is not a report"):
        read_report(Store(str(tmp_path)), "report.json")


def test_comparing_with_a_dataset_measures_it(base: dict[str, Any], tmp_path: Path) -> None:
    store, _ = make_report_set(tmp_path / "set")
    twin, _ = make_report_set(tmp_path / "twin")
    report = write_report(store, str(tmp_path / "out"), compare=twin.address, features=0)
    distances = [row["compare"]["distance"] for row in report["drift"]["measures"] if row["name"] != "features"]
    assert distances == [0.0] * len(distances)
    again = write_report(store, str(tmp_path / "again"), compare=str(tmp_path / "out"), features=0)
    assert [row["compare"] for row in again["drift"]["measures"]] == [
        row["compare"] for row in report["drift"]["measures"]
    ]


def test_notes_name_the_reports_that_are_missing(base: dict[str, Any]) -> None:
    nights = [night(base, seed) for seed in range(7)]
    assert drift(base, nights[:2])["notes"][0].endswith("needs at least 3 earlier reports; there are 2.")
    assert drift(base, nights[:4])["notes"][0].startswith("There are only 4 earlier reports, so the median of seven is")
    assert drift(base, nights)["notes"] == ["Thresholds for the median need 8 earlier reports; there are 7."]


def test_verdict_names_every_doubt(base: dict[str, Any]) -> None:
    report = copy.deepcopy(base)
    report["classes"][0]["made"] = 0
    report["drift"]["over"] = ["Luminance", "Yield", "Classes", "Contrast", "Speed"]
    problems = verdict(report, None)["problems"]
    assert "1 class without a sample" in problems
    assert "unusual drift in luminance, yield, classes and 2 more measures" in problems
    empty = copy.deepcopy(base)
    empty["funnel"]["yield"] |= {"count": 0, "of": 0, "share": None}
    assert verdict(empty, base)["compared"] is None


@pytest.mark.parametrize("change", [{"created": 7}, {"dataset": {"name": 1, "settings": {}, "samples": 1}}])
def test_earlier_report_with_other_types_is_rejected(
    base: dict[str, Any], change: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "report.json").write_text(json.dumps(base | change))
    with pytest.raises(UserError, match=r"is not a report \(TypeError\)"):
        read_report(Store(str(tmp_path)), "report.json")
