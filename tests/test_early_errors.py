"""Invalid paths and options are reported before PyTorch is imported, which takes seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from factory import exit_codes
from factory.config.vocabulary import voc
from tests.support.voc_folder import write_folder

_PROGRAM = """
import json, sys
from typer.testing import CliRunner
from factory.cli.main import app
from factory.errors import UserError
seen = set()
for command in json.load(sys.stdin):
    result = CliRunner().invoke(app, command)
    if isinstance(result.exception, UserError):
        message, code = str(result.exception), result.exception.exit_code
    else:
        message, code = f"{result.exception!r} {result.output}", result.exit_code
    imported = {"torch", "ray", "transformers"} & {*sys.modules} - seen
    print(json.dumps([message, code, sorted(imported)]))
    seen |= imported
"""

COMMANDS = {
    "train-grounder none --out out": "none is not a dataset: there is no such folder. Create one with `factory boot",
    "train-grounder none --out out --devices 2 --batch 4": "none is not a dataset",
    "train-grounder none --out out --start none": "training of the grounder cannot start from",
    "train-grounder none --out out --start empty": "is not a grounder's config",
    "train-grounder none --out out --device gpu": "there is no device 'gpu'",
    "train-grounder none --out out --learning-rate nan": "Invalid value for '--learning-rate'",
    "train-grounder none --out empty/recipe.yaml": "empty/recipe.yaml is not a folder",
    "train-grounder none --out empty": "empty is a dataset; give another folder",
    "train-grounder none --out taken": "taken/model is not a folder; give another path",
    "train-segmenter --real voc --out caf\udce9": "has a name that is not UTF-8, which safetensors and TensorBoard",
    "stickers train detector --out empty": "--out empty is a dataset; give another folder",
    "import-grounder none --model owner/name --out out": "the checkpoint none cannot be read",
    "evaluate-grounder run": "run is the folder of a training run; give its grounder, run/model.",
    "evaluate-segmenter run --real voc": "is not a segmenter folder (it has no segmenter.json); give run/model.",
    "evaluate-grounder none": "there is no grounder 'none'",
    "evaluate-grounder stickers --classes voc": "which is not a split of voc",
    "evaluate-grounder stickers --real none": "there is no such folder. Create one with `factory invert --split all`.",
    "evaluate-grounder stickers --device gpu": "there is no device 'gpu'",
    "train-segmenter none --out out": "none is not a dataset",
    "train-segmenter none --out out --devices 2": "none is not a dataset",
    "train-segmenter --real none --out out": "none is not a PASCAL VOC folder",
    "train-segmenter --real voc --start none --out out": "training of the segmenter cannot start from",
    "train-segmenter --real voc --start empty --out out": "is not a segmenter folder",
    "train-segmenter --real voc --out out --device cuda:": "there is no device 'cuda:'",
    "train-segmenter --real voc --out out --architecture segfomer": "there is no architecture segfomer; give segformer",
    "train-segmenter --real voc --out out --architecture empty": "it has no config.json",
    "evaluate-segmenter none --real voc": "none is not a segmenter folder",
    "evaluate-segmenter segmenter --real none": "none is not a PASCAL VOC folder",
    "evaluate-segmenter segmenter --real voc --split 9": "there is no split '9' for voc",
    "compare-segmenters a=segmenter --real b=none": "none is not a PASCAL VOC folder",
    "invert --real none --out out": "none is not a PASCAL VOC folder",
    "invert --real none --out out --model no/model/here": "there is no model folder no/model/here",
    "invert --real none --out out --noise-level 2": "Invalid value for '--noise-level'",
    "bootstrap-oracle --classes voc --split 1 --n 2 --out out --model no/model/here": "there is no model folder",
    "bootstrap-oracle --classes voc --split 1 --n 2 --out out --detector no/model/here": "no/model/here",
    "generate --classes voc --n 2 --out out --masks none": "there is no grounder 'none'",
    "stickers evaluate --pipeline none --out out": "--pipeline must be stickers, stickers-turbo, or a diffusers folder",
    "stickers evaluate --detector none --out out": "--detector must be a folder that `factory stickers train`",
    "stickers evaluate --judge none --out out": "--judge must be a folder that `factory stickers train` has written",
    "stickers evaluate-autoencoder --autoencoder none": "--autoencoder must be the folder of an autoencoder, got none.",
    "stickers draw --classes dog --model none --out x.png": "--model must be stickers, stickers-turbo, or a diffusers",
    "stickers train detector --out run": "run/detector is not a folder; give another path",
    "stickers train detector --start none --out out": "--start must be the folder of a trained model, got none.",
    "prompts --classes voc --n 2 --out out --lm no/model/here": "there is no language model no/model/here",
    "prompts --classes voc --n 2 --out out --lm empty --device gpu": "there is no device 'gpu'",
    "prompts --classes voc --n 2 --out out --lm empty --model no/model/here": "there is no model folder no/model/here",
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, int, list[str]]]:
    """(message, exit code, heavy modules that it imported) by command; all run in one process."""
    folder = tmp_path_factory.mktemp("early")
    write_folder(folder / "voc")
    (folder / "empty").mkdir()
    (folder / "empty/recipe.yaml").write_text("")
    (folder / "segmenter").mkdir()
    (folder / "segmenter/segmenter.json").write_text(json.dumps({"names": ["background", *voc().names]}))
    for file in ("taken/model", "run/detector"):
        (folder / file).parent.mkdir()
        (folder / file).touch()
    (folder / "run/model").mkdir()
    (folder / "run/model/config.json").write_text("{}")
    (folder / "run/model/segmenter.json").write_text("{}")
    result = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        input=json.dumps([command.split() for command in COMMANDS]),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(lines) == len(COMMANDS), result.stderr
    assert not (folder / "out").exists()
    return {command: tuple(line) for command, line in zip(COMMANDS, lines, strict=True)}


@pytest.mark.parametrize("command", COMMANDS)
def test_invalid_input_is_reported_before_pytorch_is_imported(
    command: str, outcomes: dict[str, tuple[str, int, list[str]]]
) -> None:
    message, code, imported = outcomes[command]
    assert COMMANDS[command] in message
    assert (code, imported) == (exit_codes.BAD_INPUT, [])
