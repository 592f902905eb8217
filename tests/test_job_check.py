"""Validation of job files: every option of every step is checked on load."""

from pathlib import Path

import pytest
import yaml

from factory.config.sections import GeneratorRecipe
from factory.config.stickers import STICKERS, TURBO
from factory.errors import UserError
from factory.workflow.run import Workflow, load_workflow
from tests.support.in_process import commands, invoke

JOBS = Path(__file__).parents[1] / "jobs"


def loaded(text: str, folder: Path, **change: str) -> Workflow:
    (folder / "job.yaml").write_text(text)
    known = {name: command for name, command in commands().items() if name != "run"}
    return load_workflow(folder / "job.yaml", None, known, change)


def job(step: str) -> str:
    return f"out: o\nsteps:\n  - verify: {{with: first}}\n  - {step}\n"


GOOD = 'generate: {classes: "dog,cat", n: 2, shards: "{out}/s"'


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("verify: set", "the options of verify must be `option: value` pairs, got 'set'"),
        ("verify: [set]", "the options of verify must be `option: value` pairs"),
        ("verify: 5", "the options of verify must be `option: value` pairs"),
        ('generate: {classes: [dog, cat], n: 2, shards: "{out}/s"}', "classes takes one value, got a list of 2"),
        ("{generate: {n: 1}, verify: {with: a}}", "step 2 must be one command with its options, got 2 commands"),
        ("verify", "step 2 must be one command with its options, got 'verify'"),
        ("[verify]", "step 2 must be one command with its options"),
        ("~", "step 2 must be one command with its options, got None"),
        ("bake: {}", "there is no command 'bake'; a step is one of bootstrap-oracle, compare-segmenters, "),
        ("verify:", "verify: DATASET is missing"),
        ("verify: {with: ~}", "with must be a string or a number, got nothing"),
        ("verify: {with: [a, b]}", "verify: unexpected argument b"),
        ("verify: {with: {a: b}}", "with must be a string or a number"),
        ("verify: {with: a, repair: 1}", "repair must be true or false, got '1'"),
        ("verify: {with: a, repair: ~}", "repair must be true or false, got nothing"),
        ('verify: {with: a, repair: "false"}', "repair must be true or false, got 'false'"),
        ("verify: {with: a, colour: red}", "verify has no option 'colour'"),
        ("verify: {with: [a, --colour]}", "there is no option --colour"),
        ("verify: {with: --help}", "--help has no effect in a job"),
        (GOOD + ", seed: ~}", "seed must be a string or a number, got nothing"),
        (GOOD + ", seed: true}", "seed must be a string or a number, got true"),
        (GOOD + ", steps: 0}", "--solver-steps must be at least 1, got 0"),
        (GOOD + ", batch: many}", "--batch must be a whole number from 1 to 1024, or auto, got many"),
        (GOOD + ", dtype: half}", "--dtype must be one of float32, tf32, float16, bfloat16; got 'half'"),
        (GOOD + ", seed: 1.5}", "--seed must be a valid integer, got 1.5"),
        (GOOD + ", n: 3}", "repeats the key 'n'"),
        (GOOD + ", objects: 1:nan}", "a share must be a number of at least 0, got 'nan'"),
        (GOOD + ", seed: {a: 1}}", "seed must be a string or a number"),
        ('generate: {classes: "dog,dog", n: 2, shards: s}', "'dog' is repeated"),
        ("generate: {classes: dgo, n: 2, shards: s}", "there is no class 'dgo' in coco; did you mean dog"),
        (
            "generate: {classes: dgo, n: 2, shards: s, model: stickers-turbo}",
            "The embedded models know only the 80 COCO",
        ),
        ("generate: {classes: missing.txt, n: 2, shards: s}", "there is no class file missing.txt"),
        ("generate: {classes: dog, n: two, shards: s}", "--n must be a valid integer, got two"),
        ("generate: {classes: dog, n: 2}", "--shards is missing"),
        (
            "train-grounder: {with: a, out: b, module: other}",
            "--module must be one of guided, paper, paper-cfg; got 'other'",
        ),
        ("train-grounder: {with: a, out: b, steps: 0}", "--train-steps must be at least 1, got 0"),
        ("plan: {n: 2, workers: 0}", "--workers must be at least 1, got 0"),
        ("export: {with: a, format: cocoo}", "--format must be one of coco, voc, yolo, hf; got 'cocoo'"),
        ("export: {with: a, format: voc, val: 20}", "--val must be at most 1, got 20"),
        ("preview: {with: a, n: 0}", "--n must be at least 1, got 0"),
        ("invert: {real: a, out: b, noise-level: 23}", "--noise-level must be at most 1, got 23"),
        ("train-grounder: {with: a, out: b, device: gpu}", "--device: there is no device 'gpu'; choose auto, cpu,"),
        ("train-grounder: {with: a, out: b, learning-rate: -1}", "--learning-rate must be at least 0, got -1"),
        ("train-segmenter: {real: a, out: b, real-classes: unseen}", "--real-classes must be one of all, seen; got"),
        ("prompts: {lm: a, n: 2, out: b, dtype: int8}", "--dtype must be one of float32, bfloat16, float16; got"),
        ("stickers: {with: [render, --out, a, --size, 5]}", "--size must be at least 32, got 5"),
        ("stickers: {with: [render, --out, a, --n, 0]}", "--n must be at least 1, got 0"),
        ("stickers: {with: [train, detector, --steps, 0]}", "--train-steps must be at least 1, got 0"),
        ("stickers: {with: [train, detector, --batch, 0]}", "--batch must be at least 1, got 0"),
        ("stickers: {}", "stickers requires a subcommand under `with:`: render"),
        ("stickers: {with: [bake]}", "there is no command 'bake'"),
        ("stickers: {with: [render, --n, x, --out, y]}", "--n must be a valid integer, got x"),
        ("run: {with: job.yaml}", "there is no command 'run'"),
        ('verify: {with: "{nothing}"}', "uses 'nothing', which is neither"),
        ('verify: {with: "{out.__class__}"}', "uses 'out.__class__', which is neither"),
        ('verify: {with: "{out:>99999999999}"}', "uses 'out:>99999999999', which is neither"),
        ('verify: {with: "a{"}', "contains a single {; write {{ for a literal brace"),
    ],
)
def test_invalid_step_is_rejected_on_load(step: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        loaded(job(step), tmp_path)
    assert str(error.value).startswith((f"{tmp_path}/job.yaml", "cannot parse the job"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a job"),
        ("- a", "is not a job"),
        ("out: o", "is not a job"),
        ("steps: [{verify: {with: a}}]", "is not a job"),
        ("out: o\nsteps: {verify: {with: a}}", "is not a job"),
        ("out: o\nsteps: []", "is not a job"),
        ("out: ~\nsteps: [{verify: {with: a}}]", "`out:` must be the path of a folder"),
        ("out: [o]\nsteps: [{verify: {with: a}}]", "`out:` must be the path of a folder"),
        (
            "out: s3://bucket/x\nsteps: [{verify: {with: a}}]",
            "must be a local path, got the URL s3://bucket/x",
        ),
        (
            "out: o\nname: x\nsteps: [{verify: {with: a}}]",
            "has an unknown key 'name'; the keys of a job are out, values and steps",
        ),
        ("out: o\nvalues: [n]\nsteps: [{verify: {with: a}}]", "`values:` must map names to single values"),
        (
            "out: o\nvalues: {n: ~}\nsteps: [{verify: {with: a}}]",
            "the value n must be a string or a number, got nothing",
        ),
        ("out: o\nvalues: {n: [1]}\nsteps: [{verify: {with: a}}]", "the value n must be a string or a number"),
        ("out: o\nvalues: {out: x}\nsteps: [{verify: {with: a}}]", "cannot be named 'out'"),
        ("out: o\nvalues: {a-b: x}\nsteps: [{verify: {with: a}}]", "cannot be named 'a-b'"),
        ("out: o\nsteps: [", "cannot parse the job"),
        ("out: o\nsteps:\n- verify: &a {with: *a}", "contains itself|found undefined alias|cannot parse"),
        ("out: !!python/name:os.system x\nsteps: []", "cannot parse the job"),
    ],
)
def test_invalid_file_is_rejected(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        loaded(text, tmp_path)


def test_values_are_read_as_written(tmp_path: Path) -> None:
    """YAML 1.1 reads 2:1 as 121, 010 as 8 and no as false."""
    step = 'generate: {classes: no, n: "{split}", objects: 2:1, shards: "{out}/{{x}}", model: m}'
    text = f"out: o\nvalues: {{split: 010}}\nsteps:\n  - {step}\n"
    (step,) = loaded(text, tmp_path).steps
    assert step.arguments == ("--classes", "no", "--n", "010", "--objects", "2:1", "--shards", "o/{x}", "--model", "m")


def test_utf_16_job_is_read_and_out_is_overridden(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(job('verify: {with: "{out}/x"}').replace("\n", "\r\n"), encoding="utf-16")
    loaded_job = load_workflow(tmp_path / "job.yaml", Path("other"), commands(), {})
    assert loaded_job.steps[1].arguments == ("other/x",)


def test_repeated_set_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(job("verify: set"))
    result = invoke("run", tmp_path / "job.yaml", "--set", "n=1", "--set", "n=2", "--dry-run")
    assert "--set gives n several values: n=1, n=2; give one" in str(result.exception)


def test_dry_run_validates_the_job(tmp_path: Path) -> None:

    (tmp_path / "job.yaml").write_text(job("verify: set"))
    result = invoke("run", tmp_path / "job.yaml", "--dry-run")
    assert isinstance(result.exception, UserError)
    assert not result.stdout


@pytest.mark.parametrize("file", sorted(JOBS.glob("*.yaml")), ids=lambda file: file.stem)
def test_a_job_of_the_repository_has_valid_options(file: Path) -> None:
    known = {name: command for name, command in commands().items() if name != "run"}
    assert load_workflow(file, None, known, {}).steps


@pytest.mark.parametrize(("part", "name"), [("diffusion", STICKERS), ("turbo", TURBO)])
def test_oracle_datasets_of_new_models_are_sampled_as_those_of_the_embedded_models(part: str, name: str) -> None:
    """The defaults of a folder are others: the grounder was trained on images of 20 steps and guidance 5."""
    steps = [step.get("bootstrap-oracle", {}) for step in yaml.safe_load((JOBS / "stickers.yaml").read_text())["steps"]]
    (given,) = [options for options in steps if options.get("model") == f"{{out}}/{part}/model"]
    fields = ("steps", "guidance", "guidance_schedule")
    data = {field: given[option] for field in fields if (option := field.replace("_", "-")) in given}
    sampled, embedded = GeneratorRecipe(model="folder", **data), GeneratorRecipe(model=name)
    assert [getattr(sampled, field) for field in fields] == [getattr(embedded, field) for field in fields]
