"""Fixtures of several tests: a bucket, a tiny pipeline of the real classes, and recipes for it."""

import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from factory import signals
from factory.config.recipe import Recipe, make_recipe
from tests.support.bucket import Bucket, serving
from tests.support.recipes import three_shards

# torch's tensors do not take numpy's `copy` keyword yet; the schedulers of diffusers convert them.
QUIET = "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", QUIET)


@pytest.fixture(autouse=True)
def fresh_signals() -> Iterator[None]:
    """Every test starts like a new process: without the signals of earlier tests and their handlers."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    hook = sys.unraisablehook
    signals.listen()
    sys.unraisablehook = hook  # pytest's
    yield
    sys.unraisablehook = hook
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A bucket to which s3:// and gs:// lead."""
    with serving(Bucket()) as bucket:
        for name, value in bucket.environment().items():
            monkeypatch.setenv(name, value)
        yield bucket


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A home folder without credentials."""
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(params=["s3://b/set", "gs://b/set"])
def address(request: pytest.FixtureRequest) -> str:
    """A dataset in a bucket of each kind."""
    return str(request.param)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion pipeline with random weights: 64 x 64 images in a few milliseconds."""
    from tests.support.tiny_pipeline import tiny_pipeline

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tiny_pipeline(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def tiny_data(tiny_model: Path) -> dict[str, Any]:
    """A recipe's data: 12 samples in 3 shards, some of which the filters reject at first."""
    return three_shards(tiny_model, min_area=0.3)


@pytest.fixture
def tiny_recipe(tiny_data: dict[str, Any]) -> Recipe:
    return make_recipe(tiny_data)


@pytest.fixture(scope="session")
def recipe_file(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of 12 samples in 3 shards for one worker, as a file."""
    data = three_shards(tiny_model, min_area=0.2) | {"engine": {"workers": 1}}
    path = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    path.write_text(yaml.safe_dump(data))
    return path
