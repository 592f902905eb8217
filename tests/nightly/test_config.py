"""The configuration of a night: one clear sentence for everything that is wrong, and the recipe of each date."""

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from factory.errors import UserError
from factory.nightly.config import NightlyConfig, load_config
from factory.nightly.record import Night

SCHEMAS = Path(__file__).parents[2] / "schemas"
EXAMPLE = """\
root: s3://bucket/nightly
timezone: Europe/Berlin
recipe: {classes: coco, n: 4000, objects: {1: 0.5, 2: 0.5}}
mode: fresh
budget: {hours: 6, until: 06:00, gpu_hours: 40}
exports: [coco]
verify: {shards: 50}
keep: {nights: 14}
price_per_gpu_hour: 2.10
notify:
  - {on: failure, webhook: "https://hooks.example.org/T0/secret"}
  - {on: always, command: "notify-send 'a night'"}
  - {command: [logger, "-t", night]}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "nightly.yaml"
    path.write_text(text)
    return path


def test_example_of_the_documentation_is_read(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, EXAMPLE))
    assert config.budget is not None
    assert (config.budget.hours, config.budget.until, config.budget.gpu_hours) == (6, "06:00", 40)
    assert config.recipe_of(datetime.date(2026, 11, 25)).objects == {1: 0.5, 2: 0.5}
    assert [entry.on for entry in config.notify] == ["failure", "always", "failure"]
    assert config.root == "s3://bucket/nightly"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("root: s3://bucket/nightly", "", "root is missing"),
        ("root: s3://bucket/nightly", "root: ftp://host/x", "ftp:// is not supported"),
        (
            "root: s3://bucket/nightly",
            "root: ~nobody-here/nights",
            "root: there is no home folder for ~nobody-here/nights",
        ),
        ("keep:", "kepe:", "there is no key kepe; the keys are root, timezone, starts, recipe"),
        ("keep: {nights: 14}", "keep: {night: 14}", "there is no key keep.night; the keys of keep are nights"),
        (
            "keep: {nights: 14}",
            "keep: {nights: 0}",
            "keep.nights must be at least 1 (got '0')",
        ),
        ("until: 06:00", "until: 6pm", "budget.until must be a time of day from 00:00 to 23:59, such as 06:00"),
        ("hours: 6,", "hours: soon,", "budget.hours must be a valid number (got 'soon')"),
        ("budget: {hours: 6, until: 06:00, gpu_hours: 40}", "budget: {}", "requires hours, until or gpu_hours"),
        ("Europe/Berlin", "Europe/Atlantis", "timezone is not a time zone; give an IANA name such as Europe/Berlin"),
        ("mode: fresh", "mode: grow", "`target` is required by mode grow"),
        ("mode: fresh", "target: 100", "not allowed in mode fresh"),
        ("mode: fresh", "mode: fesh", "mode must be 'fresh' or 'grow' (got 'fesh')"),
        ("[coco]", "[coco, cocoa]", "exports.1 must be 'coco', 'voc', 'yolo' or 'hf' (got 'cocoa')"),
        ("[coco]", "[coco, coco]", "exports names a format twice"),
        ("verify: {shards: 50}", "verify: some", "verify must be all or a number of shards such as {shards: 50} (got"),
        ("verify: {shards: 50}", "verify: [50]", "verify must be all or a number of shards such as {shards: 50} (got"),
        ("{classes: coco, n: 4000, objects: {1: 0.5, 2: 0.5}}", "[n]", "the path of a recipe file (got ['n'])"),
        (
            "keep: {nights: 14}\nprice_per",
            "kepe: {nights: 14}\nprize_per",
            "there is no key kepe, prize_per_gpu_hour; the keys are root, timezone, starts, recipe, mode, target, "
            "budget, exports, verify, keep, price_per_gpu_hour, notify. See docs",
        ),
        ("[coco]", "!!set {coco, voc}", "the tag !!set on line 6 is not supported; remove it"),
        ('{on: failure, webhook: "https://hooks.example.org/T0/secret"}', "https://hooks/secret", "notify.0 must be"),
        ("verify: {shards: 50}", "verify: {shards: 0}", "verify.shards must be at least 1"),
        ("n: 4000,", "", ".yaml: n is missing"),
        ("n: 4000,", "n: 4000, sead: 3,", "there is no field sead"),
        ("on: failure, webhook:", "on: failure, webhok:", "there is no key notify.0.webhok"),
        ("https://hooks.example.org/T0/secret", "hooks.example.org", "a webhook must be a URL such as"),
        ("https://hooks.example.org/T0/secret", "$SLACK-HOOK", "a webhook must be a URL such as"),
        ("https://hooks.example.org/T0/secret", "${HOOKS}/T0/secret", "a webhook must be a URL such as"),
        ("https://hooks.example.org/T0/secret", "https://me:secret@host/", "a webhook must be a URL such as"),
        ("https://hooks.example.org/T0/secret", "https://host/a secret", "a webhook must be a URL such as"),
        ("https://hooks.example.org/T0/secret", "https://[secret/", "a webhook must be a URL such as"),
        ("notify-send 'a night'", "notify-send 'a night", "No closing quotation"),
        ("command: \"notify-send 'a night'\"", 'command: ""', "the command of a notification is empty"),
        ("command: [logger", "webhook: https://h/, command: [logger", "requires either a webhook or a command"),
        ("mode: fresh", "mode: fresh\nmode: grow", "repeats the key 'mode'"),
    ],
)
def test_invalid_configuration_is_rejected_with_one_sentence(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in EXAMPLE
    with pytest.raises(UserError) as raised:
        load_config(write(tmp_path, EXAMPLE.replace(old, new)))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "[]", "hello"])
def test_configuration_that_is_no_mapping_is_rejected(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="must be a mapping"):
        load_config(write(tmp_path, text))


def test_every_night_of_fresh_has_its_own_seed_unless_the_recipe_has_one(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "root: nights\nrecipe: {n: 5}\n"))
    assert config.recipe_of(datetime.date(2026, 11, 25)).seed == 20261125
    assert config.root == str(tmp_path / "nights"), "relative to the file"
    (tmp_path / "recipe.yaml").write_text("n: 5\nseed: 7\n")
    config = load_config(write(tmp_path, "root: nights\nrecipe: recipe.yaml\n"))
    assert config.recipe_of(datetime.date(2026, 11, 25)).seed == 7


def test_grow_has_one_recipe_for_all_nights_with_the_target_as_its_size(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "root: nights\nmode: grow\ntarget: 100\nrecipe: {n: 30, classes: voc}\n"))
    first, second = (config.recipe_of(datetime.date(2026, 11, day)) for day in (25, 26))
    assert (first, first.n, config.samples_per_night()) == (second, 100, 30)
    config = load_config(write(tmp_path, "root: nights\nmode: grow\ntarget: 100\nrecipe: {}\n"))
    assert config.samples_per_night() is None
    with pytest.raises(UserError, match=r"recipe.earlier: the dataset of mode grow .* \(got \[10\]\)"):
        load_config(write(tmp_path, "root: nights\nmode: grow\ntarget: 100\nrecipe: {n: 30, earlier: [10]}\n"))


@pytest.mark.parametrize(("name", "model"), [("nightly", NightlyConfig), ("night", Night)])
def test_published_schema_matches_the_model(name: str, model: Any) -> None:
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}
    assert json.loads((SCHEMAS / f"{name}.json").read_text()) == schema
    Draft202012Validator.check_schema(schema)


def test_schema_accepts_the_example(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, EXAMPLE))
    schema = json.loads((SCHEMAS / "nightly.json").read_text())
    Draft202012Validator(schema).validate(config.model_dump(mode="json", exclude_unset=True))
