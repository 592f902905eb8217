"""The programs that the Makefile starts exist and start, and its environments can be installed."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_no_library_has_two_pins() -> None:
    """`make setup-extras` installs with both files; pip rejects a library that they pin to different versions."""
    pins = [
        {line.split("==")[0] for line in (ROOT / file).read_text().splitlines() if "==" in line}
        for file in ("constraints.txt", "constraints-extras.txt")
    ]
    assert len(pins[0]) > 50
    assert pins[0] & pins[1] == set()
