"""The programs that the Makefile starts exist and start, and its environments can be installed."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from factory.config.sections import GeneratorRecipe
from factory.config.stickers import STICKERS, TURBO

ROOT = Path(__file__).parents[1]
PROGRAMS = re.findall(r"\$\(BIN\)/python (-m )?([\w./]+)", (ROOT / "Makefile").read_text())
MODULES = sorted({name for module, name in PROGRAMS if module})
SCRIPTS = sorted({name for module, name in PROGRAMS if not module})


def test_modules_exist() -> None:
    assert "tests.chaos" in MODULES
    assert [name for name in MODULES if importlib.util.find_spec(name) is None] == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_start(script: str) -> None:
    """A script that is started by its path, not with -m, cannot import the packages of the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, script, "--help"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_the_atlas_is_built_from_the_icon_sets_that_it_names() -> None:
    script = (ROOT / "jobs/stickers/build_atlas.py").read_text()
    named = re.findall(r'": "([\w-]+@[\d.]+)",$', script, re.MULTILINE)
    installed = re.findall(r"@iconify-json/([\w-]+@[\d.]+)", (ROOT / "Makefile").read_text())
    assert len(named) == 10
    assert sorted(installed) == sorted(named)


@pytest.mark.parametrize(("part", "name"), [("diffusion", STICKERS), ("turbo", TURBO)])
def test_oracle_datasets_of_new_models_are_sampled_as_those_of_the_embedded_models(part: str, name: str) -> None:
    """The defaults of a folder are others: the grounder was trained on images of 20 steps and guidance 5."""
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    (line,) = re.findall(rf"bootstrap-oracle .*--model runs/{part}/model .*", text)
    given = shlex.split(line)
    fields = {"steps": "--steps", "guidance": "--guidance", "guidance_schedule": "--guidance-schedule"}
    data = {field: given[given.index(option) + 1] for field, option in fields.items() if option in given}
    sampled, embedded = GeneratorRecipe(model="folder", **data), GeneratorRecipe(model=name)
    assert [getattr(sampled, field) for field in fields] == [getattr(embedded, field) for field in fields]


def test_no_library_has_two_pins() -> None:
    """`make setup-extras` installs with both files; pip rejects a library that they pin to different versions."""
    pins = [
        {line.split("==")[0] for line in (ROOT / file).read_text().splitlines() if "==" in line}
        for file in ("constraints.txt", "constraints-extras.txt")
    ]
    assert len(pins[0]) > 50
    assert pins[0] & pins[1] == set()
