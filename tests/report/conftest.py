"""A dataset with known numbers, and its report."""

import json
from typing import Any

import pytest

from factory.config.recipe import Recipe
from factory.dataset.storage import Store
from factory.report.run import write_report
from tests.support.report_datasets import make_report_set


@pytest.fixture(scope="package")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Recipe]:
    return make_report_set(tmp_path_factory.mktemp("numbers") / "night" / "dataset")


@pytest.fixture(scope="package")
def report(dataset: tuple[Store, Recipe], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("numbers-out")
    returned = write_report(dataset[0].address, str(out), features=0)
    stored: dict[str, Any] = json.loads((out / "report.json").read_text())
    assert stored == returned
    return stored
