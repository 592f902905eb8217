"""What stops a night before a GPU is requested, and what `--dry-run` shows."""

import datetime
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from factory.config.recipe import make_recipe
from factory.config.sections import EngineRecipe
from factory.dataset.lease import leased
from factory.errors import UserError
from factory.generation import run as generation_run
from factory.nightly import preflight
from factory.nightly.preflight import estimated_size
from factory.nightly.record import NightFile
from factory.nightly.run import preview_night, run_night
from tests.nightly.conftest import DATE, Make, Put, record, states
from tests.support.bucket import Bucket
from tests.support.tiny_families import tiny_family


def test_preflight_rejects_a_store_without_conditional_writes(make: Make, bucket: Bucket) -> None:
    bucket.ignores_conditions = True
    outcome = run_night(make(root="s3://b/nights"))
    assert outcome.exit_code == 2
    assert "does not honour conditional writes: it created 2026-11-25/preflight-" in outcome.message
    assert bucket.objects == {}


def test_preflight_rejects_folders_that_a_night_did_not_make(make: Make, tmp_path: Path) -> None:
    (tmp_path / "nights/2026-11-25").mkdir(parents=True)
    (tmp_path / "nights/2026-11-25/thesis.tex").write_text("mine")
    outcome = run_night(make())
    assert (outcome.exit_code, "contains 2026-11-25/thesis.tex, but no night.json" in outcome.message) == (2, True)
    (tmp_path / "nights/recipe.yaml").write_text("n: 1")
    assert "is a dataset; give another `root`" in run_night(make()).message
    assert not (tmp_path / "nights/2026-11-25/night.json").exists()


def test_preflight_and_preview_reject_a_root_that_is_a_file(make: Make, tmp_path: Path) -> None:
    (tmp_path / "nights").touch()
    assert f"root {tmp_path}/nights cannot be written: {tmp_path}/nights is not a folder" in run_night(make()).message
    with pytest.raises(UserError, match="nights is not a folder; give another path"):
        preview_night(make())


def is_nearly_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 300 * 2**20})())


def test_preflight_rejects_a_full_disk_before_anything_is_made(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    is_nearly_full(monkeypatch)
    assert run_night(make(recipe={"n": 8000})).exit_code == 75
    context = make(recipe={"n": 8000})
    outcome = run_night(context)
    assert "has 0.3 GB of free space, but the night needs about" in outcome.message
    assert list(context.dataset.list("")) == [".lock"], "the lease was released"
    found = NightFile(context.root, DATE).load()
    assert found is not None
    assert (found.state, found.exit_code, found.runs) == ("failed", 75, 0)


def test_the_advice_for_a_full_disk_helps(
    make: Make, generated: Put, monkeypatch: pytest.MonkeyPatch, bucket: Bucket
) -> None:
    """A smaller `keep` deletes nothing until a night succeeds. For a bucket, the temporary folder is too small."""
    run_night(generated(make(date=DATE - datetime.timedelta(days=1))))
    is_nearly_full(monkeypatch)
    outcome = run_night(make(recipe={"n": 8000}, keep={"nights": 1}))
    assert (outcome.exit_code, outcome.deleted) == (75, ())
    assert "free some space, delete old nights by hand, or give a smaller dataset." in outcome.message
    outcome = run_night(make(recipe={"n": 8000}, root="s3://b/nights", exports=["coco"]))
    assert outcome.exit_code == 75
    assert "set TMPDIR to a folder on a larger disk, or give a smaller dataset." in outcome.message


@pytest.mark.parametrize(("family", "side"), [("sd", 64), ("z-image", 1024)])
def test_expected_size_of_a_sample_is_that_of_the_model(family: str, side: int, tmp_path: Path) -> None:
    generator = {"model": str(tiny_family(family, tmp_path))}
    default, wide = (make_recipe({"n": 1, "generator": generator | more}) for more in ({}, {"width": 2 * side}))
    pixels = side * side
    assert estimated_size(wide) - estimated_size(default) == pytest.approx(0.5 * pixels)
    assert estimated_size(default) == pytest.approx(0.5 * pixels, abs=10_000)


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"recipe": {"generator": {"model": "./models/none"}}}, 2, "there is no model folder"),
        ({"recipe": {"classes": ["dog", "unicorn"], "masks": {"source": "detector"}}}, 2, "unicorn"),
        ({"recipe": {"generator": {"revision": "0" * 40}}}, 2, "but its content is now"),
        ({"budget": {"gpu_hours": 4}}, 2, "budget.gpu_hours is never used up"),
        ({"recipe": {"engine": {"gpus_per_worker": 1}}}, 2, "a worker requires 1 GPU, but this machine has 0"),
        ({"recipe": {"engine": {"address": "127.0.0.1:1"}}}, 75, "nothing is listening at 127.0.0.1:1"),
        ({"notify": [{"webhook": "$NO_SUCH_HOOK"}]}, 2, "the environment variable NO_SUCH_HOOK"),
    ],
)
def test_preflight_finds_what_would_stop_the_workers(
    make: Make, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], code: int, message: str
) -> None:
    monkeypatch.delattr(generation_run, "Scheduler")
    context = make()
    if "generator" in change.get("recipe", {}):
        generator = {**context.recipe.generator.model_dump(mode="json"), **change["recipe"]["generator"]}
        change = {"recipe": {"generator": generator}}
    outcome = run_night(make(**change))
    assert (outcome.exit_code, outcome.state) == (code, "failed"), outcome.message
    assert message in outcome.message


def test_workers_with_other_versions_are_rejected() -> None:
    own = preflight.versions()
    preflight.check_versions([("a", own)])
    with pytest.raises(preflight.UserError, match=r"node-2 has other versions than the driver: torch 1\.0 instead of "):
        preflight.check_versions([("node-1", own), ("node-2", {**own, "torch": "1.0"})])


def test_a_machine_that_is_lost_during_the_check_does_not_stop_the_night(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Spot nodes come and go; a machine that cannot run factory is an error."""
    nodes = [{"NodeID": name, "NodeManagerHostname": name} for name in ("a", "b")]
    answers: dict[str, Any] = {"a": preflight.versions(), "b": ray.exceptions.TaskUnschedulableError("no such node")}

    def get(reference: str) -> Any:
        if isinstance(answers[reference], Exception):
            raise answers[reference]
        return answers[reference]

    task = SimpleNamespace(options=lambda scheduling_strategy: SimpleNamespace(remote=lambda: scheduling_strategy))
    monkeypatch.setattr(ray, "remote", lambda **options: lambda function: task)
    monkeypatch.setattr(ray, "wait", lambda references, num_returns, timeout: (references, []))
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(preflight, "_on", str)
    monkeypatch.setattr("factory.engine.capacity.alive_nodes", lambda: nodes)
    monkeypatch.setattr("factory.engine.cluster.connected", lambda engine, threads: nullcontext())
    preflight.check_workers(EngineRecipe(address="auto"), threads=1)
    assert caplog.messages == ["Versions not checked on b: the machine was lost."]
    answers["b"] = ray.exceptions.WorkerCrashedError()
    with pytest.raises(preflight.UserError, match="a machine of the cluster cannot run this program: The worker died"):
        preflight.check_workers(EngineRecipe(address="auto"), threads=1)


def test_dry_run_writes_nothing_and_names_the_limit_and_what_would_be_deleted(
    make: Make, generated: Put, tmp_path: Path
) -> None:
    root = make().root
    for days in (2, 1):
        date = DATE - datetime.timedelta(days=days)
        root.put(f"{date}/night.json", record(date, "complete"))
    before = states(tmp_path / "nights")
    data = preview_night(make(budget={"hours": 6}, keep={"nights": 2}, timezone="Europe/Berlin"))
    assert (data["action"], data["seed"], data["would_delete"]) == ("start", 20261125, ["2026-11-23"])
    assert datetime.datetime.fromisoformat(data["until"]).utcoffset() in (
        datetime.timedelta(hours=hours) for hours in (1, 2)
    )
    assert states(tmp_path / "nights") == before
    root.put("latest.json", record(DATE - datetime.timedelta(days=1), "complete"))
    assert preview_night(make(keep={"nights": 1}))["would_delete"] == ["2026-11-23", "2026-11-24"]
    root.delete("latest.json")
    context = make()
    with leased(context.dataset):
        assert preview_night(context)["held"]
    assert not preview_night(context)["held"]
    run_night(generated(make()))
    assert preview_night(make())["action"] == "nothing"
