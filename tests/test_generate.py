"""Datasets from the command line: generated, resumed, extended, inspected, verified and repaired."""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from PIL import Image

from factory.config.recipe import make_recipe
from factory.dataset.storage import Store
from factory.dataset.verify import verify
from tests.support.bucket import Bucket, Fault, serving
from tests.support.in_process import error, output
from tests.support.program import PROGRAM, factory, hashes
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def finished(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of an undisturbed run with one worker; all other runs must yield the same bytes."""
    out = tmp_path_factory.mktemp("sets") / "reference"
    result = factory("generate", "--recipe", recipe_file, "--shards", out, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["samples"] == 12
    return out


def copy_of(finished: Path, to: Path) -> Path:
    subprocess.run(["cp", "-r", finished, to], check=True)
    return to


def test_finished_dataset_is_recorded_as_complete(finished: Path) -> None:
    description = json.loads((finished / "dataset.json").read_text())
    assert (description["samples"], description["complete"], description["shards"]) == (12, True, 3)
    assert json.loads((finished / "progress.json").read_text())["status"] == "done"


def test_receipts_record_what_the_bytes_depend_on_besides_the_recipe(finished: Path) -> None:
    receipt = json.loads((finished / "receipts/000000.json").read_text())
    assert receipt["worker"]["processor"].split()[-1] in {"DEFAULT", "AVX2", "AVX512"}  # as PyTorch names them
    assert receipt["versions"]["torch"] == version("torch")


def test_resume_generates_only_shards_without_receipt(finished: Path, tmp_path: Path) -> None:
    """With the stored recipe as a file, and with two workers."""
    out = copy_of(finished, tmp_path / "cut")
    for name in ("receipts/000001.json", "train/000001.tar", "receipts/000002.json"):
        (out / name).unlink()
    modified = (out / "receipts/000000.json").stat().st_mtime_ns
    result = factory("generate", "--recipe", out / "recipe.yaml", "--shards", out, "--workers", 2)
    assert result.returncode == 0, result.stderr
    assert hashes(out) == hashes(finished)
    assert len(hashes(finished)) == 6
    assert (out / "receipts/000000.json").stat().st_mtime_ns == modified


def test_changed_recipe_is_rejected_with_the_differences(finished: Path, recipe_file: Path) -> None:
    message = error("generate", "--recipe", recipe_file, "--shards", finished, "--steps", 3, "--seed", 5)
    assert "seed: 0 -> 5; generator.steps: 2 -> 3" in message


def test_extend_enlarges_a_dataset_and_keeps_its_shards(finished: Path, tmp_path: Path) -> None:
    out = copy_of(finished, tmp_path / "larger")
    assert "add --extend" in error("generate", "--shards", out, "--n", 18)
    result = factory("generate", "--shards", out, "--n", 18, "--extend", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["samples"] == 18
    assert hashes(out).items() >= hashes(finished).items()
    assert "18 of 18 samples in 5 shards" in output("generate", "--shards", out, "--n", 18, "--extend")
    assert "5 are sound" in output("verify", out)


def test_status_and_verify_of_a_sound_dataset(finished: Path) -> None:
    status = json.loads(output("status", finished, "--json"))
    assert (status["samples"], status["status"], status["quarantined"]) == (12, "complete", [])
    report = json.loads(output("verify", finished, "--json"))
    assert (report["shards"], report["samples"], report["sound"], report["damaged"]) == (3, 12, True, {})


def test_dataset_that_lost_a_receipt_is_not_done(finished: Path, tmp_path: Path) -> None:
    from factory.cli.status import state

    folder = copy_of(finished, tmp_path / "set")
    (folder / "receipts/000000.json").unlink()
    data = state(str(folder))
    assert (data["complete"], data["progress"]["status"], data["status"]) == (False, "done", "incomplete")


def test_preview_shows_samples_beside_their_masks(finished: Path, tmp_path: Path) -> None:
    printed = output("preview", finished, "--out", tmp_path / "new" / "sheet.png", "--n", 5)
    assert printed.strip() == str(tmp_path / "new" / "sheet.png")
    with Image.open(tmp_path / "new" / "sheet.png") as picture:
        assert picture.size == (4 * 324, 2 * 178)


def test_preview_format_follows_the_file_extension(finished: Path, tmp_path: Path) -> None:
    output("preview", finished, "--out", tmp_path / "sheet.jpg", "--n", 1)
    with Image.open(tmp_path / "sheet.jpg") as picture:
        assert picture.format == "JPEG"
    message = error("sheet", finished, "--out", tmp_path / "sheet.gif")
    assert "--out must end in .png, .jpg, .jpeg, .webp, got " in message


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


DAMAGES: list[tuple[str, Callable[[Path], Any], str]] = [
    ("train/000001.tar", flip, "does not match the digest"),
    ("train/000001.tar", cut, "does not match the digest"),
    ("train/000001.tar", Path.unlink, "is missing"),
    ("manifest/000001.parquet", Path.unlink, "is missing"),
    ("receipts/000001.json", cut, "not a valid receipt"),
]


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGES)
def test_damage_is_attributed_to_its_shard(
    finished: Path, tmp_path: Path, name: str, damage: Callable[[Path], Any], message: str
) -> None:
    damage(copy_of(finished, tmp_path / "damaged") / name)
    report = verify(Store(str(tmp_path / "damaged")))
    assert list(report.damaged) == [1]
    assert any(message in problem for problem in report.damaged[1])


def test_repair_restores_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    out = copy_of(finished, tmp_path / "damaged")
    flip(out / "train/000000.tar")
    cut(out / "train/000001.tar")
    (out / "receipts/000001.json").unlink()  # as after a power failure before the receipt was written
    (out / "manifest/000002.parquet").unlink()
    checked = factory("verify", out)
    assert checked.returncode == 5
    assert "2 of 3 shards exist, with 8 samples; 0 are sound." in checked.stdout
    assert "2 shards are damaged; repair the dataset with `factory verify" in checked.stdout
    assert "2 files have no receipt: train/000001.tar, manifest/000001.parquet." in checked.stdout
    repaired = factory("verify", out, "--repair")
    assert repaired.returncode == 0, repaired.stderr
    assert "Repaired shards: 0, 1, 2.\n3 of 3 shards exist, with 12 samples; 3 are sound." in repaired.stdout
    assert hashes(out) == hashes(finished)


def test_measured_plan_estimates_the_disk_space(recipe_file: Path, finished: Path) -> None:
    data = json.loads(output("plan", "--recipe", recipe_file, "--measure", "--json"))
    actual = sum(path.stat().st_size for path in (finished / "train").glob("*.tar"))
    assert data["bytes"] == pytest.approx(actual, rel=0.35), "tars are padded to blocks of 10 KiB"
    assert data["trial"]["accepted"] == 3
    assert data["worker_hours"] > 0


def test_unreliable_bucket_yields_the_same_bytes_and_a_second_driver_is_rejected(
    finished: Path, recipe_file: Path, tmp_path: Path
) -> None:
    """Resets, lost responses, 503 and an outage of 2 s; no credentials leak to files, logs or the process list."""
    with serving(Bucket(seed=1)) as bucket:
        environment = {**os.environ, **bucket.environment(), "HOME": str(tmp_path)}
        command = [*PROGRAM, "generate", "--recipe", str(recipe_file), "--shards", "s3://b/set"]
        kinds: list[Any] = ["reset", "lost", "cut", "status"]
        bucket.faults[:] = [Fault(kind, times=None, chance=0.08) for kind in kinds]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as first:
            wait_until(lambda: "b/set/lease.json" in bucket.objects, 60, "no lease", 0.05)
            second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
            wait_until(lambda: "receipts/" in " ".join(bucket.objects), 60, "no shard was committed", 0.05)
            commands = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
            bucket.faults.append(Fault("outage", times=None, seconds=2))
            out, err = first.communicate(timeout=120)
    assert first.returncode == 0, err
    assert second.returncode == 75, second.stderr
    assert f"another driver is working on s3://b/set: process {first.pid} on " in second.stderr
    written = {name.removeprefix("b/set/"): data for name, (data, _) in bucket.objects.items()}
    tars = {name: hashlib.sha256(data).hexdigest() for name, data in written.items()}
    assert tars.items() >= hashes(finished).items()
    assert "lease.json" not in written
    assert json.loads(written["progress.json"])["status"] == "done"
    everything = "".join([out, err, second.stderr, *commands, *(data.decode("latin-1") for data in written.values())])
    assert "test-secret-key" not in everything
    assert "test-access-key" not in everything


def test_dataset_of_a_hub_model_resumes_without_the_hub(
    recipe_file: Path, tiny_model: Path, finished: Path, tmp_path: Path
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "hub" / "models--nobody--tiny"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("f" * 40)
    subprocess.run(["cp", "-r", tiny_model, cache / "snapshots"], check=True)
    (cache / "snapshots").rename(cache / "moved")
    (cache / "snapshots").mkdir()
    (cache / "moved").rename(cache / "snapshots" / commit)
    (cache / "snapshots" / commit / "README.md").write_text("# Tiny\n")
    data = yaml.safe_load(recipe_file.read_text())
    data["generator"]["model"] = "nobody/tiny"
    (tmp_path / "unpinned.yaml").write_text(yaml.safe_dump(data))
    data["generator"]["revision"] = commit
    Store(str(tmp_path / "out")).create("recipe.yaml", make_recipe(data).to_yaml().encode())
    result = subprocess.run(
        [*PROGRAM, "generate", "--recipe", str(tmp_path / "unpinned.yaml"), "--shards", str(tmp_path / "out")],
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_ENDPOINT": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert len(hashes(tmp_path / "out")) == len(hashes(finished))
