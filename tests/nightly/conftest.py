"""Nights whose shards are made in this process, as an interrupted run would have left them."""

import datetime
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from factory.dataset.storage import Store
from factory.nightly.config import load_config
from factory.nightly.context import NightContext, make_context
from factory.nightly.record import NightFile
from factory.nightly.steps import prepare_night, start_night
from tests.support.datasets import make_dataset

DATE = datetime.date(2026, 11, 25)

Make = Callable[..., NightContext]
Put = Callable[[NightContext], NightContext]


def states(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Modification time and content of every file; the lock file of the store has none of its own."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def record(date: datetime.date, state: str, **fields: Any) -> bytes:
    stamp = "2026-11-25T21:00:00Z"
    data = {
        "date": date.isoformat(),
        "state": state,
        "mode": "fresh",
        "config": "c",
        "dataset": f"{date.isoformat()}/dataset",
        "started": stamp,
        "updated": stamp,
        "period": {"started": stamp},
        "n": 12,
        **fields,
    }
    return json.dumps(data).encode()


def put_night(root: Store, date: datetime.date, state: str = "complete", **fields: Any) -> None:
    """A night with a record and a dataset without content."""
    root.put(f"{date}/dataset/recipe.yaml", b"n: 12")
    root.put(f"{date}/night.json", record(date, state, **fields))


def raising(error: BaseException) -> Any:
    """A function that raises an error, whatever its arguments are."""

    def check(*arguments: object) -> None:
        raise error

    return check


@pytest.fixture(scope="session")
def night_recipe(tiny_model: Path) -> dict[str, Any]:
    """12 samples in 6 shards."""
    return {
        "n": 12,
        "classes": "voc",
        "shard_size": 2,
        "batch": 2,
        "generator": {"model": str(tiny_model), "steps": 1, "solver": "ddim", "dtype": "float32"},
        "masks": {"noise_level": 0.5},
        "filters": {"min_area": None, "max_area": None, "max_border": None, "duplicate_distance": None},
        "engine": {"workers": 1},
    }


@pytest.fixture
def make(night_recipe: dict[str, Any], tmp_path: Path) -> Make:
    """Makes the context of a night from changes to a configuration; its root is `tmp_path/nights` by default."""

    def made(date: datetime.date = DATE, recipe: dict[str, Any] | None = None, **fields: Any) -> NightContext:
        data = {"root": str(tmp_path / "nights"), "recipe": {**night_recipe, **(recipe or {})}, **fields}
        path = tmp_path / "nightly.yaml"
        path.write_text(yaml.safe_dump(data))
        messages = list[str]()
        context = make_context(load_config(path), date, messages.append)
        context.__dict__["messages"] = messages
        return context

    return made


@pytest.fixture(scope="session")
def finished_set(night_recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of the night of DATE, made without the engine: the bytes that every run must reproduce."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "nightly.yaml").write_text(yaml.safe_dump({"root": str(folder / "nights"), "recipe": night_recipe}))
    context = make_context(load_config(folder / "nightly.yaml"), DATE)
    recipe, _ = prepare_night(context, None)
    make_dataset(recipe, folder / "set")
    return folder / "set"


@pytest.fixture
def generated(finished_set: Path) -> Put:
    """Puts the finished dataset into a night, as a run would leave it that was killed before the verification."""

    def put(context: NightContext) -> NightContext:
        recipe, totals = prepare_night(context, None)
        NightFile(context.root, context.date).save(start_night(context, None, recipe, totals))
        if context.dataset.folder is not None:
            shutil.copytree(finished_set, context.dataset.folder, dirs_exist_ok=True)
        else:
            for name in Store(str(finished_set)).list(""):
                context.dataset.put_file(name, finished_set / name)
        return context

    return put
