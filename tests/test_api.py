"""The public Python API: the examples of the README work, and importing the package is fast."""

import ast
import multiprocessing
import pickle
import re
import subprocess
import sys
import threading
from operator import attrgetter
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest

import factory
from factory import api
from factory.dataset import shards
from factory.dataset.reader import DatasetSample
from tests.support.datasets import make_dataset
from tests.support.export_datasets import make_dataset as make_drawn
from tests.support.older_formats import older_masks
from tests.support.oracle_datasets import oracle_recipe


def test_a_dataset_is_generated_and_read(tiny_data: dict[str, Any], tmp_path: Path) -> None:
    recipe = factory.make_recipe({**tiny_data, "n": 3, "shard_size": 2, "filters": {"min_area": None}})
    seen = []
    summary = factory.generate(recipe, tmp_path / "out", on_progress=seen.append)
    assert summary.exit_code == 0
    assert seen[-1].status == "done"
    dataset = factory.open_dataset(str(tmp_path / "out"))
    samples = list(dataset)
    assert [sample.key for sample in samples] == [f"{index:09d}" for index in range(3)]
    assert len(dataset) == 3
    assert repr(dataset) == f"Dataset({str(tmp_path / 'out')!r}, 3 of 3 samples)"
    height, width = samples[0].labels.shape
    assert repr(samples[0]) == f"DatasetSample('000000000', {samples[0].prompt!r}, {width} x {height}, 1 annotation)"
    for sample in samples:
        assert sample.image.dtype == np.uint8
        assert sample.image.shape[:2] == sample.labels.shape
        assert sample.annotations
        for annotation, mask in zip(sample.annotations, sample.masks, strict=True):
            assert dataset.class_names[annotation["category_id"]] == annotation["category_name"]
            assert np.array_equal(sample.labels == annotation["category_id"], mask)


def test_arrays_can_be_changed_and_samples_compared(tmp_path: Path) -> None:
    make_drawn(tmp_path)
    dataset = factory.open_dataset(tmp_path)
    first, again = next(iter(dataset)), next(iter(dataset))
    for array in (first.image, first.labels, *first.masks):
        array[:] = 1  # PyTorch warns of arrays that are read-only, and augmentations work in place
    assert first != again
    assert {first, again} >= {first}


def _read_in_a_fork(dataset: factory.Dataset, folder: Path) -> None:
    assert len(list(dataset)) == 25
    with pytest.raises(factory.UserError, match="cannot be opened in a forked process; open it before the fork"):
        factory.open_dataset(folder)


def test_an_unfinished_iteration_ends_with_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its exit, Python replaces the names of modules by None before it closes the last generators."""
    make_drawn(tmp_path)
    samples: Any = iter(factory.open_dataset(tmp_path))
    next(samples)
    monkeypatch.setattr(shards, "UserError", None)
    samples.close()


def test_a_dataset_is_pickled_for_processes_in_other_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_drawn(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    pickled = pickle.dumps(factory.open_dataset("set"))
    monkeypatch.chdir("/")
    assert len(list(pickle.loads(pickled))) == 25


@pytest.mark.filterwarnings("ignore:.*fork")
def test_forked_processes_read_an_open_dataset(tmp_path: Path) -> None:
    """Workers of a DataLoader never returned: the threads that read files do not exist in a fork."""
    make_drawn(tmp_path)
    arguments = factory.open_dataset(tmp_path), tmp_path
    process = multiprocessing.get_context("fork").Process(target=_read_in_a_fork, args=arguments, daemon=True)
    process.start()
    process.join(20)
    process.kill()
    assert process.exitcode == 0


def test_a_process_generates_one_dataset_at_a_time(
    tiny_recipe: factory.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, end = threading.Event(), threading.Event()

    def wait(*_: object) -> None:
        started.set()
        assert end.wait(10)

    monkeypatch.setattr(api, "run", wait)
    thread = threading.Thread(target=factory.generate, args=(tiny_recipe, tmp_path / "first"))
    thread.start()
    assert started.wait(10)
    try:
        with pytest.raises(factory.UserError, match="second cannot be generated now, because this process is generat"):
            factory.generate(tiny_recipe, tmp_path / "second")
    finally:
        end.set()
        thread.join()
    factory.generate(tiny_recipe, tmp_path / "second")


def test_damaged_masks_raise_an_error_that_names_the_sample() -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    record = {"annotations": [{"segmentation": {"size": [2, 2], "counts": "1"}}]}
    sample = DatasetSample("000000007", image, image[..., 0], record)
    with pytest.raises(factory.UserError, match=r"^the masks of sample 000000007 are damaged: run lengths add up to 1"):
        _ = sample.masks


def test_a_missing_dataset_and_a_damaged_shard_raise_a_clear_error(tiny_recipe: factory.Recipe, tmp_path: Path) -> None:
    with pytest.raises(factory.UserError, match="there is no such folder"):
        factory.open_dataset(str(tmp_path / "nothing"))
    make_dataset(tiny_recipe, tmp_path / "out")
    tar = tmp_path / "out" / "train" / "000001.tar"
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    with pytest.raises(factory.UserError, match=r"000001\.tar .* is damaged"):
        list(factory.open_dataset(str(tmp_path / "out")))


def test_arguments_of_other_types_raise_a_clear_error(
    tiny_recipe: factory.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    untyped: Any = factory
    for value in (None, b"out", 3):
        for read in (untyped.open_dataset, untyped.Dataset, lambda path: untyped.generate(tiny_recipe, path)):
            with pytest.raises(factory.UserError, match="the address of a dataset must be a path or a URL, got"):
                read(value)
    with pytest.raises(factory.UserError, match=r"must be a factory\.Recipe, got a dict; make one with"):
        untyped.generate({"classes": ["dog"], "n": 1}, "out")
    with pytest.raises(factory.UserError, match=r"on_progress must be a function of a factory\.Snapshot, got a str"):
        untyped.generate(tiny_recipe, "out", on_progress="print")
    with pytest.raises(factory.UserError, match=r"s3:/bucket/set names no bucket; write a URL such as s3://bucket/"):
        factory.open_dataset(Path("s3://bucket/set"))
    with pytest.raises(factory.UserError, match="is empty"):
        factory.generate(tiny_recipe, " ")
    with pytest.raises(factory.UserError, match="a recipe file must be a path, got None; give a string or a pathlib"):
        untyped.load_recipe(None)
    with pytest.raises(factory.UserError, match=r"must be a local path, got the URL s3://bucket/r\.yaml"):
        factory.load_recipe("s3://bucket/r.yaml")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("update", "message"),
    [({"n": -1}, "n must be at least 1"), ({"sed": 1}, "no field sed"), ({"generator": {"step": 2}}, "generator.step")],
)
def test_changed_copies_of_a_recipe_are_checked(
    tiny_recipe: factory.Recipe, tmp_path: Path, update: dict[str, Any], message: str
) -> None:
    with pytest.raises(factory.UserError, match=message):
        factory.generate(tiny_recipe.model_copy(update=update), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_checking_a_recipe_again_does_not_change_it(tiny_recipe: factory.Recipe, tiny_model: Path) -> None:
    fields = tiny_recipe.model_dump()
    older = [{**fields, "format": format, "masks": older_masks(fields["masks"])} for format in (1, 2)]
    automatic = factory.make_recipe({"n": 1, "batch": "auto"})
    recipes = [tiny_recipe, *map(factory.make_recipe, older), oracle_recipe(tiny_model), automatic]
    checked = [api._validated(recipe) for recipe in recipes]
    assert checked == recipes
    # Defaults must not count as given: precision, steps and guidance then came neither from the hardware nor the model.
    assert [recipe.model_dump(exclude_unset=True) for recipe in checked] == [
        recipe.model_dump(exclude_unset=True) for recipe in recipes
    ]


def test_recipes_are_made_from_sections_and_paths() -> None:
    recipe = factory.make_recipe({"n": 1})
    assert recipe.masks.source == "stickers"
    for generator in (recipe.generator, {"model": Path("stickers")}):
        assert factory.make_recipe({"n": 1, "generator": generator}) == recipe
    named = factory.make_recipe({"n": 1, "generator": {"model": Path("models/a")}, "masks": {"source": Path("runs/g")}})
    assert (named.generator.model, named.masks.source) == ("models/a", "runs/g")


def test_a_path_opens_a_dataset(tmp_path: Path) -> None:
    make_drawn(tmp_path)
    assert len(factory.Dataset(tmp_path)) == len(factory.open_dataset(tmp_path)) == 25


def test_importing_the_package_loads_no_library() -> None:
    code = "import sys, factory; print(sorted({'numpy', 'pydantic', 'torch', 'ray'} & sys.modules.keys()))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_type_checkers_know_exactly_the_names_of_the_package() -> None:
    assert get_type_hints(api.generate)["return"] is factory.RunSummary
    statements = ast.parse(Path(factory.__file__).read_text(encoding="utf-8")).body
    visible = {statement.name for statement in statements if isinstance(statement, ast.FunctionDef)}
    assert "__getattr__" not in visible  # it gives every name the type Any
    (guarded,) = (each for each in statements if isinstance(each, ast.If) and ast.unparse(each.test) == "TYPE_CHECKING")
    (imported,) = guarded.body
    assert isinstance(imported, ast.ImportFrom)
    assert sorted(alias.name for alias in imported.names) == factory.__all__


def test_the_errors_of_generate_can_be_caught() -> None:
    errors = re.findall(r"^ +(\w+Error):", str(api.generate.__doc__), re.MULTILINE)
    assert "LeaseHeldError" in errors
    assert set(errors) <= set(factory.__all__)


def test_the_package_exports_all_of_the_api() -> None:
    assert set(factory.__all__) == set(api.__all__) <= set(dir(factory))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        attrgetter("nothing")(factory)
