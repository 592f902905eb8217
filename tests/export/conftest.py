"""A dataset shared by all export tests."""

import os

import pytest

from factory.dataset.storage import Store
from factory.export import run as export_run
from factory.export.hf import HuggingFaceFormat
from tests.support.export_datasets import make_dataset


@pytest.fixture(scope="package")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_dataset(tmp_path_factory.mktemp("export") / "set")[0]


@pytest.fixture(autouse=True)
def small_parquet_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put two shards into each file."""
    size = 2 * 70_000
    monkeypatch.setitem(export_run.FORMATS, "hf", lambda info, polygons: HuggingFaceFormat(info, size))


@pytest.fixture(autouse=True)
def without_synchronisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of small files take seconds to reach a busy disk; tests about it replace `fsync` themselves."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
