"""`factory verify --repair` of the datasets of nights."""

from pathlib import Path

import pytest

import factory.generation.run
from factory import exit_codes
from factory.config.recipe import Recipe
from factory.config.sections import StoreRecipe
from factory.dataset.continuation import night_options
from factory.dataset.receipts import tar_name
from factory.dataset.storage import Store
from factory.engine.state import State
from factory.errors import StoreUnavailableError
from tests.nightly.conftest import DATE, raising, record
from tests.support.bucket import Bucket, Fault
from tests.support.export_datasets import commit_shard, make_dataset
from tests.support.in_process import invoke


def generated(recipe: Recipe, store: Store, todo: list[int], *_: object) -> State:
    """As `run._run`, in this process."""
    for number in todo:
        commit_shard(store, recipe, number)
    return State(len(todo), shards_done=len(todo))


@pytest.fixture(autouse=True)
def without_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factory.generation.run, "_run", generated)
    monkeypatch.setattr(factory.generation.run, "prepare", lambda recipe, store: recipe)


@pytest.mark.parametrize("mode", ["grow", "fresh", None])
def test_repair_leaves_the_missing_shards_of_a_night_to_its_job(mode: str | None, tmp_path: Path) -> None:
    """In mode `grow`, nearly the whole target may be missing; the repair would generate it without a budget."""
    folder = tmp_path / "dataset" if mode == "grow" else tmp_path / f"{DATE}/dataset"
    make_dataset(folder, shards=range(3))
    if mode is not None:
        name = folder.relative_to(tmp_path).as_posix()
        Store(str(tmp_path)).put(f"{DATE}/night.json", record(DATE, "failed", mode=mode, dataset=name))
    (folder / tar_name(1)).write_bytes(b"damaged")
    result = invoke("verify", folder, "--repair")
    assert result.exit_code == 0, result.output
    repaired, state, *missing = result.stdout.splitlines()
    assert repaired == ("Repaired shards: 1, 3, 4." if mode is None else "Repaired shard: 1.")
    assert state.startswith(f"{5 if mode is None else 3} of 5 shards exist")
    assert missing == ([] if mode is None else ["2 shards do not exist yet: 3, 4."])


@pytest.mark.parametrize("mode", ["grow", "fresh"])
def test_interrupted_repair_of_a_complete_night_is_continued(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its job would not generate the deleted shards: for it, the night is complete, and nothing is left to do."""
    folder = tmp_path / "dataset" if mode == "grow" else tmp_path / f"{DATE}/dataset"
    _, recipe = make_dataset(folder)
    name = folder.relative_to(tmp_path).as_posix()
    night = record(DATE, "complete", mode=mode, dataset=name, n=recipe.n, planned=recipe.n)
    Store(str(tmp_path)).put(f"{DATE}/night.json", night)
    (folder / tar_name(1)).write_bytes(b"damaged")
    with monkeypatch.context() as interrupted:
        interrupted.setattr(factory.generation.run, "_run", raising(KeyboardInterrupt()))
        assert invoke("verify", folder, "--repair").exit_code == exit_codes.INTERRUPTED
    assert invoke("status", folder).stdout.splitlines()[-1] == f"To resume, run `factory generate --shards {folder}`."
    result = invoke("verify", folder, "--repair")
    assert (result.exit_code, result.stdout.splitlines()[0]) == (0, "Repaired shard: 1.")
    assert invoke("verify", folder).stdout.startswith("5 of 5 shards exist")


@pytest.mark.parametrize("name", [f"{DATE}/night.json", "delimiter"])
def test_repair_does_not_take_a_night_for_another_dataset_in_an_outage(
    name: str, bucket: Bucket, tmp_path: Path
) -> None:
    """It generated nearly the whole target of a dataset of mode `grow`."""
    local, _ = make_dataset(tmp_path, shards=range(3))
    store = Store("s3://b/nights/dataset")
    for file in local.list(""):
        store.put(file, local.get(file) or b"")
    Store("s3://b/nights").put(f"{DATE}/night.json", record(DATE, "partial", mode="grow", dataset="dataset"))
    bucket.faults.append(Fault("status", f"GET .*{name}", times=None))
    with pytest.raises(StoreUnavailableError):
        night_options(Store("s3://b/nights/dataset", StoreRecipe(patience=0.2)))
    bucket.faults.clear()
    assert night_options(store) == []


@pytest.mark.parametrize("content", [b"5", b"null", b"[1]", b'"night"', b"{"])
def test_record_that_is_no_night_is_ignored(content: bytes, tmp_path: Path) -> None:
    Store(str(tmp_path)).put(f"{DATE}/night.json", content)
    assert night_options(Store(str(tmp_path / f"{DATE}/dataset"))) is None
