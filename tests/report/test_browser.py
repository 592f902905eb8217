"""The page in a real browser: opened from the file system, filtered by class, and checked for accessibility."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from factory.dataset.storage import Store
from factory.report.run import write_report
from tests.support.report_datasets import make_report_set

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with drift, errors and a quarantined shard, so that every panel has content."""
    folder = tmp_path_factory.mktemp("browser")
    before, _ = make_report_set(folder / "before", content=1)
    store, _ = make_report_set(folder / "set", classes=("dog", "<script>cat", "traffic light", "bus", "hair drier"))
    store.put("quarantine/000003.json", b'{"shard": 3, "error": "ValueError: no"}')
    write_report(before, str(folder / "earlier"), features=0)
    earlier = [(Store(str(folder / "earlier")), "report.json")] * 9
    write_report(store, str(folder / "out"), earlier, compare=before.address, features=0)
    return folder / "out/index.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium of the operating system; the test fails where there is none."""
    from playwright.sync_api import sync_playwright

    names = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    program = next((path for name in names if name and (path := shutil.which(name))), None)
    assert program is not None, "there is no Chromium; install it (on Debian: apt-get install chromium) or set CHROMIUM"
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=arguments)
        yield chromium
        chromium.close()


def opened(browser: Any, file: Path, **options: Any) -> tuple[Any, list[str]]:
    """(the page, a list to which messages of the console, errors and network requests are appended)."""
    page, problems = browser.new_page(**options), list[str]()
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: problems.append(request.url) if request.url[:5] not in ("file:", "data:") else 0)
    page.goto(file.as_uri())
    return page, problems


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_without_errors_and_is_accessible(browser: Any, page_file: Path, scheme: str) -> None:
    page, problems = opened(browser, page_file, color_scheme=scheme)
    assert page.locator("main > section").count() == 11
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    for summary in page.locator("summary").all():
        summary.click()  # axe skips what is not visible
    page.evaluate(Path(os.environ["AXE"]).read_text(encoding="utf-8"))
    violations = page.evaluate("axe.run()")["violations"]
    assert [(item["id"], [node["html"][:200] for node in item["nodes"]]) for item in violations] == []
    assert problems == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) > 384) == (scheme == "light")
    page.close()


def test_the_class_filter_works_with_the_keyboard(browser: Any, page_file: Path) -> None:
    page, problems = opened(browser, page_file)
    rows, cards = page.locator("#classes tbody tr:visible"), page.locator("#audit .card:visible")
    total = cards.count()
    assert rows.count() == 5
    page.locator("#class-filter").focus()
    page.keyboard.type("<script>")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert rows.all_inner_texts()[0].startswith("<script>cat")
    assert rows.count() == 1
    assert 0 < cards.count() < total
    assert all("<script>cat" in text for text in page.locator("#audit .card:visible .name").all_inner_texts())
    assert page.locator("#filter-status").inner_text().startswith("<script>cat: ")
    page.locator("#class-filter").select_option("")
    assert (rows.count(), cards.count()) == (5, total)
    assert problems == []
    page.close()


@pytest.mark.parametrize("width", [360, 768, 1400])
def test_the_page_is_never_wider_than_the_window(browser: Any, page_file: Path, width: int) -> None:
    page, _ = opened(browser, page_file, viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_the_page_works_without_scripts(browser: Any, page_file: Path) -> None:
    page, _ = opened(browser, page_file, java_script_enabled=False)
    assert page.locator("#filter").is_hidden()
    assert page.locator("#audit .card").first.is_visible()
    page.close()


def test_the_first_tab_stop_skips_to_the_content(browser: Any, page_file: Path) -> None:
    page, _ = opened(browser, page_file)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    page.close()
