"""Texts of datasets made by others cannot control the terminal, and cannot add to a card what is not there."""

import datetime
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from factory import log_format
from factory.cli.view import watching
from factory.config.plan import Plan
from factory.config.recipe import make_recipe
from factory.config.sections import MaskRecipe
from factory.dataset.card import card
from factory.dataset.lease import _new_lease, parse_lease
from factory.dataset.receipts import CorruptReceiptError, parse_receipt, receipt_name
from factory.dataset.storage import Store
from factory.dataset.totals import current_totals
from factory.detector.load import known_labels
from factory.detector.open_names import OpenName, check_types
from factory.engine.state import State
from factory.errors import UserError
from factory.files.strict_json import canonical
from factory.generation.progress import Tracker
from factory.generator.layout import read_index, usable_values
from factory.generator.sizes import check_sizes
from factory.grounder.folder import read_grounder_config
from factory.nightly.outcome import Outcome
from factory.nightly.record import list_nights
from factory.segmenter.classes import stored_segmenter
from tests.support.export_datasets import make_dataset, run
from tests.support.in_process import SNAPSHOT, invoke

EVIL = "\x1b[2J\x9b1mfine\u202e"
CONTROLS = ("\x1b", "\x9b", "\u202e")


def assert_plain(text: str) -> None:
    assert "fine" in text, "the text is shown"
    assert not [character for character in CONTROLS if character in text]


def test_verify_shows_names_of_files_without_control_characters(tmp_path: Path) -> None:
    make_dataset(tmp_path, shards=range(1))
    (tmp_path / "train" / EVIL).write_text("")
    assert_plain(invoke("verify", tmp_path).stdout)


def test_status_lists_only_shards_as_quarantined(tmp_path: Path) -> None:
    make_dataset(tmp_path, shards=range(1))
    (tmp_path / "quarantine").mkdir()
    for name in (EVIL, "000003"):
        (tmp_path / "quarantine" / f"{name}.json").write_text("{}")
    assert "Quarantined shards: 3; see quarantine/." in invoke("status", tmp_path).stdout


def test_status_of_progress_json_is_one_of_the_known_ones(tmp_path: Path) -> None:
    make_dataset(tmp_path, shards=range(1))
    for status in (EVIL, ["running"], "x" * 1000):
        (tmp_path / "progress.json").write_text(json.dumps({"status": status}))
        assert "1 of 5 shards: initialized." in invoke("status", tmp_path).stdout


@pytest.mark.parametrize("reason", [EVIL, "a | b", "<script>", "x" * 100])
def test_receipt_with_a_reason_that_is_no_identifier_is_corrupt(reason: str, tmp_path: Path) -> None:
    make_dataset(tmp_path, shards=range(1))
    path = tmp_path / receipt_name(0)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rejected": {reason: 1}}))
    with pytest.raises(CorruptReceiptError, match="is not a reason"):
        parse_receipt(path.read_bytes())


def test_lease_is_described_without_control_characters(tmp_path: Path) -> None:
    lease = replace(_new_lease(1), host=f"{EVIL}\n{'x' * 5000}", started=EVIL)
    who = parse_lease(json.dumps(asdict(lease)).encode())
    assert who is not None
    assert_plain(who.who)
    assert "\n" not in who.who
    assert len(who.who) < 400


def test_error_with_a_name_of_another_encoding_does_not_end_the_run() -> None:
    state = State(1)
    state.report("cannot read caf\udce9")
    snapshot = Tracker(Plan(make_recipe({"n": 1})), range(1)).snapshot(state)
    assert b"cannot read caf\\\\udce9" in canonical(snapshot.to_dict())


@pytest.mark.parametrize("name", ["night.json", "model_index.json"])
def test_deeply_nested_json_is_one_sentence(name: str, tmp_path: Path) -> None:
    path = tmp_path / "2026-11-25" / name
    path.parent.mkdir()
    path.write_text("[" * 200_000)
    if name == "night.json":
        assert list(list_nights(Store(str(tmp_path))).values()) == [None], "listed as unreadable"
    else:
        with pytest.raises(UserError, match="cannot be read"):
            read_index(path.parent)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("config.json", read_grounder_config),
        ("segmenter.json", stored_segmenter),
        ("config.json", lambda folder: known_labels(MaskRecipe(detector=str(folder)))),
        ("config.json", lambda folder: check_types(OpenName("clipseg", (str(folder),)), None)),
    ],
)
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_deeply_nested_config_of_a_model_is_one_sentence(
    opening: str, name: str, read: Callable[[Path], object], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(opening * 100_000)
    with pytest.raises(UserError, match="is nested too deeply"):
        read(tmp_path)


def test_sizes_in_deeply_nested_objects_cannot_be_used(tmp_path: Path) -> None:
    """From Python 3.12 on, a file can be nested more deeply than functions that call themselves."""
    config: dict[str, Any] = {}
    for _ in range(10_000):
        config = {"text_config": config}
    with pytest.raises(UserError, match="contains a value that cannot be used"), usable_values(tmp_path):
        check_sizes(config, "unet", tmp_path)


def test_errors_of_a_run_are_shown_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    with watching(quiet=False) as watch:
        watch(replace(SNAPSHOT, errors=[EVIL]))
    assert_plain(capsys.readouterr().err)


def test_log_messages_contain_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    assert logging.lastResort is not None
    monkeypatch.setattr(logging.lastResort, "formatter", None)
    log_format.configure()  # without the variables, Python prints warnings with this handler
    record = logging.makeLogRecord({"msg": "%s", "args": (EVIL,)})
    assert_plain(logging.lastResort.format(record))
    assert_plain(log_format.TextFormatter("%(message)s").format(record))


def test_text_of_a_night_contains_no_control_characters() -> None:
    assert_plain(Outcome(datetime.date(2026, 11, 25), "/nights", "failed", 2, EVIL).to_text())


def test_card_shows_names_of_models_as_text(tmp_path: Path) -> None:
    store, recipe = make_dataset(tmp_path, shards=range(1))
    totals = current_totals(store, Plan(recipe))
    generator = recipe.generator.model_copy(update={"model": "fine |\n# Trusted <img src=x>"})
    text = card(recipe.model_copy(update={"generator": generator}), totals, 0)
    (line,) = [line for line in text.splitlines() if "fine" in line]
    assert line.startswith("| text-to-image model | fine \\| # Trusted &lt;img src=x>")


def test_cards_show_names_of_classes_as_text(tmp_path: Path) -> None:
    store, recipe = make_dataset(tmp_path / "set", n=1, classes=["<img src=x>"], objects={1: 1}, shards=range(1))
    text = card(recipe, current_totals(store, Plan(recipe)), 0).rpartition("---\n")[2]
    run(store, tmp_path / "hf", "hf")
    exported = (tmp_path / "hf/README.md").read_text().rpartition("---\n")[2]
    assert "1 &lt;img src=x>\n" in text
    assert text.startswith("# 1 generated image with masks\n")
    assert "1 &lt;img src=x>." in exported
    assert "<img" not in text + exported
