"""How the model libraries behave inside this program."""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


def quiet_model_libraries() -> None:
    """Keep diffusers and transformers from writing progress bars and remarks between this program's own lines.

    To be called before the models' modules are imported, for some remarks are made at import.
    """
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    for log in (diffusers_log, transformers_log):
        log.set_verbosity_error()
        log.disable_progress_bar()


class _BeforeModelLibraries(MetaPathFinder):
    """Finds nothing; tries torchvision when transformers or diffusers is first looked for."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name in ("transformers", "diffusers"):
            torchvision_fault()
        return None


_guard = _BeforeModelLibraries()
_fault: str | None = None


def guard_against_torchvision() -> None:
    """Let transformers and diffusers do without a torchvision that cannot be imported.

    Both import torchvision wherever it is installed, few of their models need it, and one that was built for another
    torch raises at import: then no command that loads a model would work. Costs nothing until they are imported.
    """
    if _guard not in sys.meta_path and "torchvision" not in sys.modules and PathFinder.find_spec("torchvision"):
        sys.meta_path.insert(0, _guard)


def torchvision_fault() -> str | None:
    """Why the installed torchvision cannot be imported, in a few words; None where it can, or where there is none.

    One that cannot is hidden: to the rest of the process it is not installed.
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
    except Exception as error:  # RuntimeError, OSError, AttributeError: it depends on what does not match
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "torchvision":
                del sys.modules[name]
        from importlib.metadata import version

        hidden: dict[str, Any] = sys.modules
        hidden["torchvision"] = None
        said = " ".join(str(error).split())[:120]
        return f"torchvision {version('torchvision')} does not work with torch {version('torch')}: {said}"
    return None
