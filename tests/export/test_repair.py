"""Repairs: what is deleted and restored, interruptions, and invalid options."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import factory.generation.run
from factory import exit_codes
from factory.cli.verify import as_text
from factory.dataset.description import write_description
from factory.dataset.lease import leased
from factory.dataset.receipts import committed_shards, receipt_name, tar_name
from factory.dataset.repair import repair
from factory.dataset.storage import Store
from factory.dataset.verify import verify
from factory.errors import LeaseHeldError, UserError
from tests.support.export_datasets import commit_shard, file_of, make_dataset
from tests.support.in_process import invoke


def truncate_shard(store: Store, number: int) -> None:
    tar = file_of(store, tar_name(number))
    tar.write_bytes(tar.read_bytes()[:30_000])


def test_failed_repair_reports_missing_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = make_dataset(tmp_path)
    truncate_shard(store, 2)
    found = invoke("verify", tmp_path)
    assert found.exit_code == 5
    assert "5 of 5 shards exist, with 20 samples; 4 are sound." in found.stdout
    summary = SimpleNamespace(interrupted=False)
    monkeypatch.setattr(factory.generation.run, "generate", lambda *_, **__: summary)  # as if three attempts failed
    repaired = invoke("verify", tmp_path, "--repair")
    assert repaired.exit_code == 3
    assert "Repaired shards: none.\n4 of 5 shards exist, with 20 samples; 4 are sound." in repaired.stdout
    assert "Missing after the repair: shards 2; see quarantine/ for the reasons." in repaired.stdout


def test_signal_at_the_end_of_the_generation_stops_a_repair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It read the whole dataset again, and was killed with its lease."""
    store, _ = make_dataset(tmp_path, shards=(0, 1, 3, 4))
    store.create(tar_name(2), b"left by a run that was killed")
    summary = SimpleNamespace(interrupted=True)
    monkeypatch.setattr(factory.generation.run, "generate", lambda *_, **__: summary)
    assert invoke("verify", tmp_path, "--repair").exit_code == exit_codes.INTERRUPTED


@pytest.mark.parametrize(
    ("recipe", "shards", "message"),
    [
        ({"generator": {"model": "./moved"}}, (0, 2, 3, 4), "there is no model folder"),
        ({"engine": {"gpus_per_worker": 1}}, range(5), "a worker requires 1 GPU"),
    ],
)
def test_repair_deletes_nothing_that_it_cannot_generate_again(
    recipe: dict[str, Any], shards: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factory.generation.hardware.local_gpus", lambda: 0)
    store, _ = make_dataset(tmp_path / "set", shards, **recipe)
    if 1 not in shards:
        store.create(tar_name(1), b"left by a run that was killed")
    truncate_shard(store, 2)
    before = {name: store.get(name) for name in store.list("")}
    result = invoke("verify", tmp_path / "set", "--repair")
    assert message in str(result.exception)
    assert {name: store.get(name) for name in before} == before


@pytest.mark.parametrize("folder", ["train", "manifest", "receipts"])
def test_nothing_is_deleted_while_the_disk_of_a_folder_is_not_mounted(folder: str, tmp_path: Path) -> None:
    """Without receipts, the other files of all shards looked like those of a run that was killed."""
    store, recipe = make_dataset(tmp_path / "set")
    (tmp_path / "set" / folder).rename(tmp_path / "disk")
    (tmp_path / "set" / folder).symlink_to(tmp_path / "mounted")
    before, message = store.list(""), rf"{folder} is a link to .*mounted, which does not exist; give another path\.$"
    assert re.search(message, str(invoke("verify", tmp_path / "set", "--repair").exception))
    with pytest.raises(UserError, match=message):
        factory.generation.run.generate(recipe.model_copy(update={"n": 2 * recipe.n}), store, extend=True)
    assert before.items() <= store.list("").items()
    (tmp_path / "disk").rename(tmp_path / "mounted")
    assert invoke("verify", tmp_path / "set").exit_code == exit_codes.DONE


def test_interrupted_repair_leaves_no_receipt_of_a_shard_that_is_incomplete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = make_dataset(tmp_path)
    truncate_shard(store, 2)
    report, delete = verify(store), store.delete

    def delete_one(name: str) -> None:
        delete(name)
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "delete", delete_one)
    with pytest.raises(KeyboardInterrupt):
        repair(store, report)
    assert committed_shards(store) == {0, 1, 3, 4}


@pytest.mark.parametrize("written", [0, 1])
def test_repair_that_was_killed_after_its_last_shard_is_completed(
    written: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dataset.json called the dataset incomplete until `generate` was run again."""
    store, recipe = make_dataset(tmp_path)
    write_description(store, recipe)
    before, put, writes = {name: store.get(name) for name in store.list("")}, Store.put, iter([None] * written)
    store.delete(receipt_name(2))
    write_description(store, recipe)  # as a run does before its first shard
    commit_shard(store, recipe, 2)

    def put_or_die(store: Store, name: str, data: bytes) -> None:
        next(writes)
        put(store, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put", put_or_die)
        with pytest.raises(StopIteration):
            write_description(store, recipe)
    assert invoke("verify", tmp_path, "--repair").exit_code == exit_codes.DONE
    assert {name: store.get(name) for name in ("README.md", "dataset.json")}.items() <= before.items()
    store.put("README.md", b"edited")
    assert invoke("verify", tmp_path, "--repair").exit_code == exit_codes.DONE
    assert store.get("README.md") == b"edited"


@pytest.mark.parametrize("workers", ["0", "-1"])
def test_repair_with_an_invalid_number_of_workers_is_rejected(tmp_path: Path, workers: str) -> None:
    make_dataset(tmp_path)
    result = invoke("verify", tmp_path, "--repair", "--workers", workers)
    assert result.exit_code == 2


def test_repair_is_rejected_during_a_run(tmp_path: Path) -> None:
    store, _ = make_dataset(tmp_path, shards=(0, 2, 3, 4))
    store.create(tar_name(1), b"being written")
    with leased(store):
        result = invoke("verify", tmp_path, "--repair")
        assert isinstance(result.exception, LeaseHeldError)
        assert invoke("verify", tmp_path).exit_code == 0
    assert store.get(tar_name(1)) == b"being written"


def test_report_of_damage_after_a_repair() -> None:
    data = {"damaged": {"1": ["broken"]}, "missing": [], "repaired": [0], "shards": 2, "shards_planned": 2,
            "samples": 8, "orphans": [], "foreign": []}  # fmt: skip
    assert "1 shard is still damaged after the repair" in as_text(data, "out")
