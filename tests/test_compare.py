"""Protocol II: segmenters side by side."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from factory.cli.compare import _caption
from factory.cli.main import app
from factory.config.vocabulary import from_names, voc
from factory.errors import UserError
from factory.evaluation.protocol_2 import as_markdown, compare
from factory.segmenter.measure import RealImages, evaluate_here
from factory.segmenter.model import new_segmenter, save_segmenter
from factory.stickers.voc_folder import write_voc_folder


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("protocol")
    write_voc_folder(folder / "real", voc(), 20, ("noto",), size=64)
    write_voc_folder(folder / "other", voc(), 20, ("openmoji",), size=64)
    for name in ("a", "b"):
        save_segmenter(new_segmenter("segformer", ["background", *voc().names]), folder / name, {})
    return folder


def test_every_segmenter_is_evaluated_on_every_folder(workspace: Path, tmp_path: Path) -> None:
    pairs = [f"one={workspace}/a", f"two={workspace}/b"]
    results = compare(
        pairs, [f"R={workspace}/real", f"O={workspace}/other"], RealImages(Path(), split="zs3"), threads=1
    )
    assert [(result.real, result.name) for result in results] == [
        ("R", "one"),
        ("R", "two"),
        ("O", "one"),
        ("O", "two"),
    ]
    alone = evaluate_here(workspace / "b", RealImages(workspace / "other", split="zs3"), threads=1)
    assert (results[3].score.miou, results[3].score.unseen) == (alone.miou, alone.unseen)
    table = as_markdown(results, "voc", "zs3")
    assert table.count("| two |") == 2
    assert table.count("published, mixture") == 1
    assert f"| two | {100 * alone.seen:.1f} |" in table
    renamed = [replace(result, name="a|b") for result in results]
    assert "| a\\|b | " in as_markdown(renamed, "voc", "zs3")  # GitHub reads the bar as the end of the cell
    assert "published" not in as_markdown(results, "voc", "1")  # the paper's figures are of the split zs3


def test_the_command_replaces_the_table_in_a_page(workspace: Path, tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text("# Results\n")
    arguments = [
        "compare-segmenters",
        f"mine={workspace}/a",
        "--real",
        f"R={workspace}/real",
        "--table",
        str(page),
        "--json",
    ]
    for _ in range(2):
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert json.loads(result.stdout)[0]["score"]["images"] == 4
    assert page.read_text().startswith("# Results\n")
    assert page.read_text().count("| mine |") == 1


def test_the_caption_of_a_table_names_options_that_exist() -> None:
    assert "... --classes voc --split zs3`" in _caption("voc", "zs3")
    assert "segmenters ...` printed" in _caption(from_names(["dog"]).name, None)


@pytest.mark.parametrize("pair", ["nothing", "=folder", "name="])
def test_a_segmenter_without_a_name_is_refused(pair: str) -> None:
    with pytest.raises(UserError, match="give NAME=FOLDER"):
        compare([pair], ["R=real"], RealImages(Path(), split="zs3"))


def test_every_segmenter_and_folder_is_checked_before_the_first_evaluation(workspace: Path, tmp_path: Path) -> None:
    save_segmenter(new_segmenter("segformer", ["background", "dog"]), tmp_path / "dog", {})
    first, messages = f"one={workspace}/a", list[str]()
    for segmenters, reals, message in (
        (
            [first, f"two={tmp_path}/dog"],
            [f"R={workspace}/real"],
            "dog has other classes than .*/a \\(such as aeroplane, ",
        ),
        ([first, f"two={tmp_path}/none"], [f"R={workspace}/real"], "none is not a segmenter folder"),
        ([first], [f"R={workspace}/real", f"O={tmp_path}/none"], "none is not a PASCAL VOC folder"),
        ([first, f"one={workspace}/b"], [f"R={workspace}/real"], "two arguments segmenter are both named one"),
        ([first], [f"R={workspace}/real", f"R={workspace}/other"], "two arguments --real are both named R"),
    ):
        with pytest.raises(UserError, match=message):
            compare(segmenters, reals, RealImages(Path(), split="zs3"), threads=1, report=messages.append)
    assert not messages
