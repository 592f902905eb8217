"""The programs that the Makefile starts exist and start."""

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
