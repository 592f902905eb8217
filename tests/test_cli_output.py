"""What commands print: text and JSON, without a model or the engine."""

import io
import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import factory
from factory import exit_codes
from factory.cli.generate import as_data, as_text
from factory.cli.grounder import _next_steps
from factory.cli.main import app
from factory.cli.messages import to_stdout
from factory.cli.nightly import _preview_text
from factory.cli.plan import cost
from factory.cli.prompts import _as_text as prompts_text
from factory.cli.verify import as_text as verify_text
from factory.config.recipe import Recipe, make_recipe
from factory.config.stickers import EMBEDDED_MODELS
from factory.dataset.preview import preview_image
from factory.dataset.storage import Store
from factory.dataset.stored_recipe import recipe_of
from factory.dataset.totals import Totals
from factory.errors import UserError
from factory.generation.run import RunSummary
from factory.grounder.folder import GrounderConfig
from tests.nightly.conftest import DATE, record
from tests.support.export_datasets import make_dataset
from tests.support.in_process import SNAPSHOT, error, output
from tests.support.voc_folder import write_folder


def test_version() -> None:
    assert output("--version") == f"factory {factory.__version__}\n"


def test_models_are_listed_with_their_options() -> None:
    entries = json.loads(output("models", "--json"))
    text = output("models")
    assert all(f"{entry['option']:<10} {entry['name']:<28} " in text for entry in entries)
    present = {(entry["option"], entry["name"]): entry["present"] for entry in entries}
    assert all(present[option, name] for name in EMBEDDED_MODELS for option in ("--model", "--masks"))
    assert present["--detector", "stickers"]
    assert "Stable Diffusion 1 and 2, Stable Diffusion XL" in text


def test_characters_that_the_terminal_cannot_show_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(stream, encoding="latin-1"))
    to_stdout("caf\u00e9, \u72ac")
    assert stream.getvalue() == b"caf\xe9, \\u72ac\n"


def test_status_of_a_dataset(tmp_path: Path) -> None:
    store, _ = make_dataset(tmp_path, shards=range(3))
    store.put("progress.json", b'{"status": "done"}')
    store.put("quarantine/000004.json", b"{}")
    assert output("status", tmp_path).splitlines() == [
        "15 of 25 samples, 3 of 5 shards: incomplete.",
        "15 attempts, none rejected.",
        "Quarantined shards: 4; see quarantine/.",
        f"To retry them, run `factory generate --shards {tmp_path}`.",
    ]
    data = json.loads(output("status", tmp_path, "--json"))
    assert (data["samples"], data["shards"], data["status"], data["quarantined"]) == (15, 3, "incomplete", [4])
    assert (data["exhausted"], data["fingerprint"]) == (0, recipe_of(store).fingerprint())
    assert not {"short", "recipe"} & set(data)


def test_status_counts_samples_that_were_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"samples": 8, "n": 9, "shards": 1, "shards_planned": 1, "status": "complete", "exhausted": 1}
    data |= {"attempts": 24, "rejected": {"mask_small": 16}, "quarantined": []}
    monkeypatch.setattr("factory.cli.status._nights", lambda address: [])
    monkeypatch.setattr("factory.cli.status.state", lambda address: data)
    assert output("status", "set").splitlines() == [
        "8 of 9 samples, 1 of 1 shards: complete.",
        "24 attempts, rejected: mask_small 16.",
        "1 sample was rejected in every attempt and skipped.",
    ]


def test_train_grounder_names_the_model_that_its_grounder_requires(tmp_path: Path) -> None:
    def next_steps(model: str, lora: str | None) -> str:
        config = GrounderConfig(
            *("guided", {}, {}, model, "0", 0.25, ("dog",), "1", ("0",), 300),
            oracle={"generator": {"model": model, "lora": lora}},
        )
        (tmp_path / "config.json").write_text(json.dumps(asdict(config)), encoding="utf-8")
        return _next_steps(tmp_path)

    evaluate = f"or evaluate it with `factory evaluate-grounder {tmp_path}`."
    assert next_steps("stickers", None) == f"Use it with `factory generate --masks {tmp_path}`, {evaluate}"
    options = f"--model owner/sd --lora owner/lcm --masks {tmp_path}"
    assert next_steps("owner/sd", "owner/lcm") == f"Use it with `factory generate {options}`, {evaluate}"


def test_status_of_a_killed_run_says_how_to_resume(tmp_path: Path) -> None:
    store, _ = make_dataset(tmp_path / "my set", shards=range(3))
    store.put("progress.json", b'{"status": "running"}')
    assert output("status", tmp_path / "my set").splitlines() == [
        "15 of 25 samples, 3 of 5 shards: stale.",
        "15 attempts, none rejected.",
        f"The run was killed. To resume, run `factory generate --shards '{tmp_path / 'my set'}'`.",
    ]


def test_dataset_of_a_night_is_continued_by_its_nightly_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`factory generate` would ignore the budget of the job, and in mode `grow` generate the whole target at once."""
    root, folder = Store(str(tmp_path)), tmp_path / f"{DATE}/dataset"
    make_dataset(folder, shards=range(3))
    root.put(f"{DATE}/night.json", record(DATE, "partial"))
    make_dataset(tmp_path / "dataset", shards=())
    job = "(the configuration of its nightly job)"
    assert output("status", folder).endswith(f"To resume, run `factory nightly CONFIG --date {DATE}` {job}.\n")
    generate = f"run `factory generate --shards {tmp_path / 'dataset'}`.\n"
    assert output("status", tmp_path / "dataset").endswith(generate), "no night made it"
    root.put("2026-11-26/night.json", record(DATE, "partial", dataset="dataset", mode="grow"))
    (tmp_path / "2026-11-27").mkdir()
    with pytest.raises(UserError, match=r"generate some with `factory nightly CONFIG` \(the conf.* job\)\."):
        preview_image(Store(str(tmp_path / "dataset")), 1)
    folder.rename(tmp_path / "disk")
    folder.symlink_to(tmp_path / "disk")
    assert f"`factory nightly CONFIG --date {DATE}`" in output("status", folder)
    folder.unlink()
    (tmp_path / "disk").rename(folder)
    monkeypatch.chdir(folder)
    assert f"Finish it with `factory nightly CONFIG --date {DATE}` {job}, or add" in error(
        "export", ".", "--format", "coco", "--out", tmp_path / "coco"
    )


def test_export_of_an_unfinished_dataset_says_so(tmp_path: Path) -> None:
    make_dataset(tmp_path / "set", shards=range(2))
    text = output("export", tmp_path / "set", "--format", "coco", "--partial", "--val", "0", "--out", tmp_path / "coco")
    assert "10 samples for training, 0 for validation." in text
    assert "this export contains 2 of 5 shards. Rerun the same command later to add the rest." in text


def test_status_lists_stale_and_unreadable_nights(tmp_path: Path) -> None:
    root = Store(str(tmp_path))
    root.put(f"{DATE}/night.json", record(DATE, "running"))
    root.put("2026-11-24/night.json", b"{")
    rows = [line.split() for line in output("status", tmp_path).splitlines()]
    assert rows[1] == ["2026-11-24", "unreadable"]
    assert rows[2][:4] == ["2026-11-25", "stale", "0", "0"]


def test_preview_of_a_night_as_text() -> None:
    assert _preview_text({"date": "d", "action": "nothing"}).startswith("Nothing is left to do for the night of d;")
    data = {"date": "d", "action": "start", "dataset": "r/d/dataset", "seed": 1, "samples": 0, "n": 12}
    data["held"] = False
    assert _preview_text(data | {"until": "06:00", "would_delete": ["a", "b"]}).splitlines() == [
        "The night of d would start r/d/dataset (seed 1): 0 of 12 samples exist.",
        "Its generation would end at 06:00.",
        "Nights to delete: a, b.",
    ]
    data |= {"until": None, "would_delete": []}
    assert _preview_text(data).endswith("Nights to delete: none.")
    assert "a run would exit with code 6.\n" in _preview_text(data | {"held": True})
    assert "with --force, a run would take it over.\n" in _preview_text(data | {"held": True}, force=True)


def test_summary_of_a_run_counts_what_is_missing() -> None:
    rejected = {"mask_small": 20}
    totals = Totals(
        shards=SNAPSHOT.shards - 3,
        accepted=90,
        exhausted=2,
        attempts=120,
        bytes=5_000_000,
        planned=92,
        rejected=rejected,
    )
    summary = RunSummary(totals, SNAPSHOT, {}, make_recipe({"n": 100}), lost=1)
    assert as_text(summary, "out").splitlines() == [
        f"90 of 100 samples in {totals.shards} shards at out (5.0 MB), yield 75.0%, 12 s.",
        "Rejected: mask_small 20.",
        "2 samples were rejected in every attempt and skipped.",
        "2 shards failed repeatedly; the errors are in quarantine/. Rerun the same command to retry.",
        "1 shard is missing: receipts were deleted during the run. Rerun the same command to generate the missing "
        "samples again.",
    ]


def test_documented_keys_are_those_that_json_output_has(tmp_path: Path) -> None:
    """Scripts read them."""
    store, _ = make_dataset(tmp_path / "set")
    store.put("progress.json", b'{"status": "done"}')
    totals = Totals(shards=1, accepted=2, exhausted=0, attempts=2, bytes=0, planned=2, rejected={})
    printed = {
        "generate": as_data(RunSummary(totals, SNAPSHOT, {}, make_recipe({"n": 2})), "out"),
        "status": json.loads(output("status", tmp_path / "set", "--json")),
        "verify": json.loads(output("verify", tmp_path / "set", "--json")),
        "plan": json.loads(output("plan", "--classes", "dog", "--n", 4, "--json")),
        "export": json.loads(
            output("export", tmp_path / "set", "--format", "coco", "--out", tmp_path / "coco", "--json")
        ),
    }
    page = (Path(__file__).parents[1] / "docs/generate.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", page.split("## JSON output")[1], re.MULTILINE)
    documented = {name: set(re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", keys))) for name, keys in rows}
    assert all(len(documented[name]) > 5 for name in printed)
    assert [(name, key) for name, data in printed.items() for key in documented[name] - set(data)] == []


@pytest.mark.parametrize(("psnr", "mean"), [(24.056, "Mean PSNR of the reconstructions: 24.06 dB."), (math.nan, None)])
def test_summaries_of_oracle_datasets(
    psnr: float, mean: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    totals = Totals(shards=1, accepted=1, exhausted=1, attempts=4, bytes=2_000_000, planned=2, rejected={})

    def generate(recipe: Recipe, store: Store, *options: object, **named: object) -> RunSummary:
        return RunSummary(totals, replace(SNAPSHOT, shards=1, quarantined=[]), {}, recipe)

    monkeypatch.setattr("factory.generation.run.generate", generate)
    monkeypatch.setattr("factory.generation.reconstruction.mean_psnr", lambda store, recipe: psnr)
    runner, out = CliRunner(), str(tmp_path / "out")
    oracle = ["bootstrap-oracle", "--classes", "voc", "--split", "1", "--n", "2", "--out", out]
    result = runner.invoke(app, oracle)
    assert result.exit_code == exit_codes.EXHAUSTED, repr(result.exception)
    expected = [
        f"1 of 2 samples in 1 shard at {out} (2.0 MB), yield 25.0%, 12 s.",
        "1 sample was rejected in every attempt and skipped.",
    ]
    assert result.stdout.splitlines() == expected
    assert json.loads(runner.invoke(app, [*oracle, "--json"]).stdout)["exit_code"] == exit_codes.EXHAUSTED
    inverted = ["invert", "--real", str(write_folder(tmp_path / "voc")), "--real-set", "val", "--out", out]
    result = runner.invoke(app, inverted)
    assert result.exit_code == exit_codes.EXHAUSTED, repr(result.exception)
    expected[0] = expected[0].replace("1 of 2", "1 of 1")
    assert result.stdout.splitlines() == expected + ([] if mean is None else [mean])
    data = json.loads(runner.invoke(app, [*inverted, "--json"]).stdout)
    assert (data["psnr"], data["skipped"]) == (None if mean is None else psnr, 0)


def test_quarantined_shards_determine_the_exit_code() -> None:
    totals = Totals(shards=1, accepted=1, exhausted=1, attempts=4, bytes=0, planned=2, rejected={})
    assert RunSummary(totals, SNAPSHOT, {}, make_recipe({"n": 2})).exit_code == exit_codes.FAILED


def test_verification_counts_foreign_files() -> None:
    data = {"damaged": {}, "missing": [], "repaired": None, "shards": 2, "shards_planned": 2, "samples": 8,
            "orphans": [], "foreign": ["a", "b", "c", "d"]}  # fmt: skip
    assert verify_text(data, "out").endswith("\n4 files do not belong to the dataset: a, b, c and 1 more.")


def test_a_repair_names_the_shards() -> None:
    data = {"damaged": {}, "missing": [], "shards": 8, "shards_planned": 8, "samples": 8, "orphans": [], "foreign": []}
    lines = [verify_text(data | {"repaired": repaired}, "out").splitlines()[0] for repaired in ([], [7], [1, 7])]
    assert lines == ["Repaired shards: none.", "Repaired shard: 7.", "Repaired shards: 1, 7."]


def test_verification_counts_in_the_singular_and_quotes_the_folder() -> None:
    data = {"damaged": {"0": ["bad"]}, "missing": [1], "repaired": None, "shards": 1, "shards_planned": 2, "samples": 1,
            "orphans": ["a"], "foreign": ["b"]}  # fmt: skip
    assert verify_text(data, "my set").splitlines() == [
        "shard 0: bad",
        "1 of 2 shards exist, with 1 sample; 0 are sound.",
        "1 shard is damaged; repair the dataset with `factory verify 'my set' --repair`.",
        "1 shard does not exist yet: 1.",
        "1 file has no receipt: a. Either a run is active, or one was interrupted; in the second case, "
        "`factory verify 'my set' --repair` generates these shards again.",
        "1 file does not belong to the dataset: b.",
    ]


def test_summary_of_prompts() -> None:
    data = {"prompts": 7, "n": 8, "prompts_file": "p", "lines": 12, "digest": "a" * 64, "rejected": {"long": 4},
            "exhausted": 1}  # fmt: skip
    assert prompts_text(data).splitlines() == [
        "7 of 8 prompts in p, from 12 lines of the language model; SHA-256 aaaaaaaaaaaa.",
        "Rejected: long 4.",
        "1 prompt was rejected in every attempt and left out.",
    ]


def test_measured_plan_gives_time_and_disk_space() -> None:
    trial = {"accepted": 12, "attempts": 16, "seconds": 4.0}
    data = {"trial": trial, "rate": 3.0, "bytes": 2e6, "worker_hours": 1.0, "workers": 2}
    assert cost(data) == (
        "Time: 30.0 minutes with 2 workers, 1.00 worker-hours (GPU-hours if a worker has one GPU). Disk: 2.0 MB. "
        "Measured on this machine: one worker made 12 samples from 16 images in 4.0 s."
    )
    assert cost(data | {"worker_hours": 0.001}).startswith("Time: 1.8 seconds with 2 workers, 0.00 worker-hours")
    assert cost(data | {"worker_hours": 10}).startswith("Time: 5.0 hours with 2 workers")
    nothing = cost(data | {"trial": trial | {"accepted": 0}})
    assert nothing.startswith("None of the 16 measured images was accepted; ")


def test_commands_of_a_job_are_printed(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        "out: runs\nvalues: {n: 4}\nsteps:\n- generate: {n: '{n}', shards: '{out}/set'}\n- verify: {with: '{out}/set'}"
    )
    text = output("run", tmp_path / "job.yaml", "--set", "n=5", "--dry")
    assert text == "factory generate --n 5 --shards runs/set\nfactory verify runs/set\n"
