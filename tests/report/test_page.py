"""The page: escaped, self-contained, and never larger than its limit."""

import base64
import copy
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factory.report.page import MAX_BYTES, duration, number, percent, render, size, write_page
from factory.report.run import write_report
from tests.support.in_process import invoke
from tests.support.report_datasets import make_report_set

HOSTILE = ("<script>alert(1)</script>", "</style><img src=x onerror=alert(2)>", "\"'><b>bold", "{{ 7 * 7 }}", "a&b")


class Elements(HTMLParser):
    """Collects the elements of a page with their attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open:
            self.text.setdefault(self._open[-1], []).append(data)

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """Report and page of a dataset with hostile class names."""
    folder = tmp_path_factory.mktemp("page")
    store, _ = make_report_set(folder / "set", classes=HOSTILE)
    report = write_report(store, str(folder / "out"), features=0)
    return report, (folder / "out/index.html").read_text()


def test_text_that_is_not_unicode_is_replaced(tmp_path: Path) -> None:
    store, _ = make_report_set(tmp_path / "set")
    store.put("progress.json", b'{"status": "\\ud800", "errors": ["a \\udfff b"]}')
    write_report(store, str(tmp_path / "out"), features=0)
    assert "a ? b" in (tmp_path / "out/index.html").read_text(encoding="utf-8")


def test_class_names_are_escaped(hostile: tuple[dict[str, Any], str]) -> None:
    elements = Elements(hostile[1])
    assert [row["name"] for row in hostile[0]["classes"]] == list(HOSTILE)
    assert len(elements.attributes("script")) == len(elements.attributes("style")) == 1
    assert not elements.attributes("b") or "bold" not in "".join(elements.text["b"])
    assert not any("onerror" in attributes for _, attributes in elements.tags)
    rows = [text.strip() for text in elements.text["option"]]
    assert [name for name in HOSTILE if name in rows] == list(HOSTILE)


def test_the_page_requests_nothing_and_allows_only_its_own_script(hostile: tuple[dict[str, Any], str]) -> None:
    page = hostile[1]
    elements = Elements(page)
    for tag, attributes in elements.tags:
        assert not {"style", "onclick", "onload", "srcset", "action"} & attributes.keys()
        for name in ("src", "href"):
            if attributes.get(name) is not None:
                assert re.match("(data:image/|data:,|#)", str(attributes[name])), (tag, attributes[name])
    policy = str(elements.attributes("meta")[1]["content"])
    assert policy.startswith("default-src 'none'; img-src data:; ")
    for tag in ("style", "script"):
        text = "".join(elements.text[tag])
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_figures_and_tables_have_names_for_screen_readers(hostile: tuple[dict[str, Any], str]) -> None:
    elements = Elements(hostile[1])
    ids = [attributes["id"] for _, attributes in elements.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    assert all(image["alt"] for image in elements.attributes("img"))
    for image in elements.attributes("svg"):
        assert image.get("aria-hidden") == "true" or image.get("aria-labelledby") in ids
    assert len(elements.attributes("h1")) == 1


def test_the_page_is_a_function_of_report_json(hostile: tuple[dict[str, Any], str]) -> None:
    """With the thumbnails of the page itself, `render` gives the same page: no number comes from elsewhere."""
    report, page = hostile
    groups = [*report["audit"]["rejected"].values(), report["audit"]["random"], report["audit"]["worst"]]
    order = [entry["thumbnail"] for group in report["duplicates"]["examples"] for entry in group]
    order += [entry["thumbnail"] for group in (groups[-2], groups[-1], *groups[:-2]) for entry in group]
    images = dict(zip(order, re.findall('src="(data:image/webp[^"]*)"', page), strict=True))
    assert render(json.loads(json.dumps(report)), images) == page


def test_a_page_with_many_classes_and_large_thumbnails_stays_below_the_limit(
    hostile: tuple[dict[str, Any], str],
) -> None:
    report, rng = copy.deepcopy(hostile[0]), np.random.default_rng(0)
    names = [f"{'&' * 200} {index}" for index in range(254)]
    report["classes"] = [{**report["classes"][0], "id": index + 1, "name": name} for index, name in enumerate(names)]
    report["objects"]["pairs"] = [[a, b, 9] for a in names[:60] for b in names[60:]]
    entry = report["audit"]["random"][0] | {"classes": names[:20], "prompt": "x" * 200, "attempt": 0}
    reasons = {f"reason{k}": [entry | {"thumbnail": f"r{k}-{n}"} for n in range(12)] for k in range(9)}
    report["audit"] = {"random": [entry | {"thumbnail": f"a{n}"} for n in range(48)], "rejected": reasons}
    report["audit"]["worst"] = [entry | {"thumbnail": f"w{n}"} for n in range(48)]
    shown = [e["thumbnail"] for group in (report["audit"]["random"], report["audit"]["worst"]) for e in group]
    shown += [e["thumbnail"] for group in reasons.values() for e in group]
    noise = {name: rng.integers(0, 256, (128, 128, 3), dtype=np.uint8) for name in shown}
    page = write_page(report, noise)
    assert len(page.encode()) <= MAX_BYTES
    assert page.count("data:image/webp") == len(shown), "smaller thumbnails fit"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (percent(0.12345), "12.3\u202f%"),
        (percent(None), "\u2013"),
        (number(1234567), "1,234,567"),
        (number(0.01234), "0.0123"),
        (number(12.34), "12.3"),
        (size(1_900_000), "1.9 MB"),
        (duration(59.94), "59.9 s"),
        (duration(61), "1 min 01 s"),
        (duration(7260), "2 h 01 min"),
    ],
)
def test_numbers_are_readable(shown: str, expected: str) -> None:
    assert shown == expected


def test_the_command_writes_the_report_beside_the_dataset(tmp_path: Path) -> None:
    store, _ = make_report_set(tmp_path / "set")
    result = invoke("report", store.address, "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["page"] == f"{tmp_path}/set-report/index.html"
    assert data["level"] == "check"
    assert (tmp_path / "set-report/report.json").exists()
    plain = invoke("report", store.address, "--out", tmp_path / "other")
    assert plain.stdout.splitlines() == [data["sentence"], f"{tmp_path}/other/index.html"]
