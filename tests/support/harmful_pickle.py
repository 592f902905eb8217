"""An object whose pickle runs code when it is loaded."""

from pathlib import Path
from typing import Any


class HarmfulPickle:
    """Unpickling it creates the file `mark`."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.mark), "w")
