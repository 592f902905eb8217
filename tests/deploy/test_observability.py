"""Alert rules and dashboard query the metrics that the code exports, and no others."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from tests.support.metrics import METRICS, exported_names

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "jobs/observability"
RULES: list[dict[str, Any]] = yaml.safe_load((FOLDER / "factory.rules.yml").read_text())["groups"][0]["rules"]
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPORTED = {name for metric in METRICS for name in exported_names(metric)}
LABELS = {
    "ray_node_gpus_utilization": {"SessionName", "GpuIndex", "instance"},
    **{
        name: {"dataset", "SessionName", "le", "instance", *metric.labels}
        for metric in METRICS
        for name in exported_names(metric)
    },
}


def queries() -> list[str]:
    panels = [target["expr"] for panel in PANELS for target in panel["targets"]]
    variables = [variable["query"]["query"] for variable in DASHBOARD["templating"]["list"] if "definition" in variable]
    return [*(rule["expr"] for rule in RULES), *panels, *variables]


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\bray_[a-z0-9_]+", text))


@pytest.mark.parametrize("query", queries())
def test_query_uses_metrics_and_labels_that_exist(query: str) -> None:
    names = names_in(query)
    assert names
    for name in names - EXPORTED:
        source = Path(ray.__file__).parent / "dashboard/modules/reporter/reporter_agent.py"
        assert f'"{name.removeprefix("ray_")}": Gauge(' in source.read_text(), f"neither factory nor Ray exports {name}"
    used = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)\s*\"", query))
    for labels in re.findall(r"(?:by|on)\s*\(([^)]*)\)", query):
        used |= {label.strip() for label in labels.split(",") if label.strip()}
    assert used <= set[str]().union(*(LABELS[name] for name in names))


def test_no_query_misses_the_first_value_of_a_counter() -> None:
    # `increase` needs two values, and these counters appear with the first event: one lost worker would not show.
    assert [query for query in queries() if "increase(" in query] == []


def test_success_of_the_evening_before_is_seen_until_midnight() -> None:
    (rule,) = [rule for rule in RULES if rule["alert"] == "FactoryNoSuccess"]
    hours = re.search(r"last_over_time\([a-z_]+\[(\d+)h\]\)", rule["expr"])
    assert hours is not None
    assert int(hours[1]) >= 48, "from noon of the day before to midnight UTC, in any time zone"


def test_every_metric_is_on_the_dashboard() -> None:
    shown = set[str]().union(*map(names_in, queries()))
    missing = [metric.name for metric in METRICS if not shown & set(exported_names(metric))]
    assert missing == []


def test_every_metric_is_documented() -> None:
    text = (ROOT / "docs/monitoring.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(factory_\w+)` \| (\w+) \|([^|]*)\|", text, re.MULTILINE)
    labels = {name: tuple(re.findall(r"`(\w+)`", cell)) for name, _, cell in rows}
    assert {name: kind for name, kind, _ in rows} == {metric.name: metric.kind for metric in METRICS}
    assert labels == {metric.name: metric.labels for metric in METRICS}


def test_alerts_have_a_severity_a_summary_and_a_test() -> None:
    tests = (FOLDER / "factory.rules.test.yml").read_text()
    tested = {test["alertname"] for group in yaml.safe_load(tests)["tests"] for test in group["alert_rule_test"]}
    assert {rule["alert"] for rule in RULES} == tested
    for rule in RULES:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "description"}
        named = set(re.findall(r"\bray_factory_\w+", rule["annotations"]["description"]))
        assert named <= EXPORTED | {name.removesuffix("_bucket") for name in EXPORTED}


def test_dashboard_is_complete_and_its_panels_do_not_overlap() -> None:
    assert DASHBOARD["uid"] == "factory"
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {"datasource", "dataset"}
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        box = panel["gridPos"]
        cells = {(x, y) for x in range(box["x"], box["x"] + box["w"]) for y in range(box["y"], box["y"] + box["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    for panel in PANELS:
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
