"""A prompts file that is being written; finished batches survive an interruption.

The unfinished file has the name of the result with the suffix `.partial`. It starts with the settings; each batch ends
with a comment that counts its rejected lines. Lines after the last such comment belong to an interrupted batch and are
removed.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from factory.config.prompts import Prompt
from factory.errors import UserError, not_written
from factory.files.atomic import synchronise, write_atomically
from factory.files.paths import check_writable_folder
from factory.files.text import read_text

_TITLE = "# Prompts written by `factory prompts`; docs/prompts.md describes the format."
_SETTINGS, _BATCH = "# settings: ", "# batch: "


@dataclass
class Progress:
    """The finished batches of a file: their number, accepted texts, and how many lines were rejected by reason."""

    batches: int = 0
    texts: list[str] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    exhausted: int = 0
    """Prompts that were rejected in every attempt."""


def check_target(path: Path) -> None:
    """UserError if a prompts file cannot be written at `path`; for a check before the language model is opened."""
    if not path.exists():  # a complete file is only read
        check_writable_folder(path.parent, "--out: the folder")


class PromptsFile:
    """Writes the file at `path`. `settings` is everything that determines its content."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self._partial = path, path.with_name(f"{path.name}.partial")
        self._head = f"{_SETTINGS}{json.dumps(settings, sort_keys=True, ensure_ascii=False)}\n"
        self._start = f"{_TITLE}\n{self._head}".encode()
        self.progress, self._size = Progress(), 0

    def open(self) -> bool:
        """Continue an unfinished file, if there is one; returns whether the file was already complete.

        Nothing is written before the first batch, so that a command which fails earlier can be corrected. Raises
        UserError if the path holds another file, or if an unfinished one has other settings.
        """
        complete = self.path.exists()
        existing = self.path if complete else self._partial
        if existing.exists():
            if not complete:
                self._complete_start()
            self._resume(existing, complete)
            return complete
        return False

    def append(self, prompts: Sequence[Prompt], rejected: Mapping[str, int], exhausted: int) -> None:
        """Add a finished batch."""
        lines = [
            json.dumps(
                {"text": prompt.text, "classes": dict(zip(prompt.classes, prompt.phrases, strict=True))},
                ensure_ascii=False,
            )
            for prompt in prompts
        ]
        if not self._size:
            self._create()
        counts = {"rejected": dict(sorted(rejected.items())), "exhausted": exhausted}
        if self._partial.stat().st_size != self._size:
            raise UserError(f"another process writes {self._partial}; stop one of them and rerun the command.")
        with self._partial.open("a", encoding="utf-8") as stream:
            stream.write("\n".join([*lines, _BATCH + json.dumps(counts)]) + "\n")
        synchronise(self._partial)
        self._size = self._partial.stat().st_size
        self._count(counts, [prompt.text for prompt in prompts])

    def _complete_start(self) -> None:
        """Write the settings again if a process was killed, or found the disk full, while it wrote them."""
        if self._partial.stat().st_size < len(self._start) and self._start.startswith(self._partial.read_bytes()):
            write_atomically(self._partial, self._start)

    def _create(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._partial.open("xb") as stream:
                stream.write(self._start)
        except FileExistsError:
            raise UserError(
                f"another process writes {self._partial}; stop one of them and rerun the command."
            ) from None
        except OSError as error:
            raise not_written(self.path, error, "give another --out") from error
        self._size = self._partial.stat().st_size

    def finish(self) -> None:
        """Rename the complete file."""
        os.replace(self._partial, self.path)

    def digest(self) -> str:
        """SHA-256 of the file, which recipes record as `prompts_digest`."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def _resume(self, existing: Path, complete: bool) -> None:
        lines = read_text(existing, "prompts file").splitlines(keepends=True)
        if self._head not in lines[:2]:
            state = "has other contents" if complete else "was started with other options, classes or models"
            raise UserError(
                f"{existing} {state}; give the same command to resume it, delete it, or give another --out."
            )
        texts: list[str] = []
        kept = lines.index(self._head) + 1
        for number, line in enumerate(lines):
            try:
                if line.startswith("{"):
                    texts.append(str(json.loads(line)["text"]) if line.endswith("}\n") else "")
                elif line.startswith(_BATCH) and line.endswith("\n"):
                    self._count(json.loads(line.removeprefix(_BATCH)), texts)
                    texts, kept = [], number + 1
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"line {number + 1} of {existing} was changed ({type(error).__name__}): {line.strip()[:80]!r}; "
                    f"restore it, delete the file, or give another --out."
                ) from error
        if not complete:
            write_atomically(self._partial, "".join(lines[:kept]))
            self._size = self._partial.stat().st_size

    def _count(self, counts: Mapping[str, Any], texts: Sequence[str]) -> None:
        self.progress.batches += 1
        self.progress.texts += texts
        self.progress.rejected.update(counts["rejected"])
        self.progress.exhausted += counts["exhausted"]
