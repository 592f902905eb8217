"""Hides a broken torchvision from transformers and diffusers, which import it if it is installed."""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from factory.errors import one_line


class _BeforeModelLibraries(MetaPathFinder):
    """Finds no module; checks torchvision when transformers or diffusers is imported for the first time."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name in ("transformers", "diffusers"):
            torchvision_fault()
        return None


_guard = _BeforeModelLibraries()
_fault: str | None = None


def guard_against_torchvision() -> None:
    """Make transformers and diffusers ignore a torchvision that cannot be imported.

    Both import torchvision if it is installed, although few of their models need it. A torchvision for another version
    of torch raises an error at import, so no command that loads a model would work. This takes no time until one of
    them is imported.
    """
    if _guard not in sys.meta_path and "torchvision" not in sys.modules and PathFinder.find_spec("torchvision"):
        sys.meta_path.insert(0, _guard)


def torchvision_fault() -> str | None:
    """Why the installed torchvision cannot be imported, in a few words; None if it can, or is not installed.

    A broken torchvision is hidden from the rest of the process, as if it were not installed.
    """
    global _fault
    if _guard in sys.meta_path:
        sys.meta_path.remove(_guard)
        _fault = _try_torchvision()
    return _fault


def _try_torchvision() -> str | None:
    before = set(sys.modules)
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # RuntimeError, OSError or AttributeError, depending on the mismatch
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "torchvision":
                del sys.modules[name]
        from importlib.metadata import version

        modules: dict[str, Any] = sys.modules
        modules["torchvision"] = None  # makes `import torchvision` raise ModuleNotFoundError
        message = one_line(error, 120)
        return f"torchvision {version('torchvision')} does not work with torch {version('torch')}: {message}"
    return None
