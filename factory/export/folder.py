"""The folder of an export: claimed for one dataset and one way of writing it, resumed by the same, closed to others."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from factory.config.recipe import canonical
from factory.errors import UserError
from factory.export.interface import Unit
from factory.files.listing import names_in

STATE = ".export"
"""Inside an export: what it is of, and a part per finished unit. Deleting it makes the export final."""


class Folder:
    """`purpose` is what the export is of, as plain data; a folder that was claimed for another one is refused."""

    def __init__(self, root: Path, purpose: Mapping[str, Any]) -> None:
        self.root, self._purpose = root, dict(purpose)
        self._state = root / STATE

    def check(self) -> None:
        """UserError where the folder holds something else, or an export with another purpose."""
        with sentences(self.root):
            if self.root.exists() and not self.root.is_dir():
                raise UserError(f"{self.root} is a file; give a new or empty folder with --out.")
            claimed = (self._state / "purpose.json").exists()
            foreign = [] if claimed else [name for name in names_in(self.root) if name != STATE]
            found = json.loads((self._state / "purpose.json").read_text()) if claimed else self._purpose
        if foreign:
            raise UserError(
                f"{self.root} is not empty and holds no export that could go on, but {', '.join(foreign[:3])}; give a "
                f"new or empty folder with --out. Nothing was written."
            )
        changed = [f"{name}: {found.get(name)} -> {value}" for name, value in self._purpose.items()
                   if found.get(name) != value]  # fmt: skip
        if changed:
            raise UserError(
                f"{self.root} holds another export: {'; '.join(changed)}. Give the same dataset and options to go on "
                f"with it, or another folder with --out. Nothing was written."
            )

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the folder, alone; UserError where another process does."""
        self.check()
        with sentences(self.root):
            self._state.mkdir(parents=True, exist_ok=True)
            with open(self._state / "lock", "w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise UserError(f"{self.root} is being written by another export; wait for its end.") from None
                self.check()
                if not (self._state / "purpose.json").exists():
                    put(self._state / "purpose.json", canonical(self._purpose) + b"\n")
                yield

    def has(self, unit: Unit) -> bool:
        """Whether the unit was written, from these very shards."""
        try:
            return bool(json.loads(self._part(unit.number).read_bytes())["tars"] == _hashes(unit))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return False

    def begin(self, unit: Unit) -> None:
        """The unit is to be written anew: until its part is back, the export is not finished."""
        (self._state / "finished").unlink(missing_ok=True)
        self._part(unit.number).unlink(missing_ok=True)
        self._part(unit.number).parent.mkdir(exist_ok=True)

    def commit(self, unit: Unit, records: Sequence[tuple[str, Any]]) -> None:
        """The unit's files are there: keep what the end needs of it."""
        splits: dict[str, list[Any]] = {}
        for split, record in records:
            splits.setdefault(split, []).append(record)
        put(self._part(unit.number), canonical({"tars": _hashes(unit), "records": splits}) + b"\n")

    def forget_beyond(self, units: int) -> None:
        """Drop the parts of units that are no more, as where a shard was lost since."""
        for part in (self._state / "parts").glob("*.json"):
            if int(part.stem) >= units:
                part.unlink()

    def finished(self, units: Sequence[Unit]) -> bool:
        """Whether the end was written too, over just these units."""
        with contextlib.suppress(FileNotFoundError):
            return (self._state / "finished").read_text() == _digest(units)
        return False

    def finish(self, units: Sequence[Unit]) -> None:
        """The end is written."""
        put(self._state / "finished", _digest(units).encode())

    def records(self, units: int) -> "FolderRecords":
        """What the first so many units left."""
        return FolderRecords([self._part(number) for number in range(units)])

    def _part(self, number: int) -> Path:
        return self._state / "parts" / f"{number:06d}.json"


class FolderRecords:
    """`interface.Records`, one unit in memory at a time."""

    def __init__(self, parts: Sequence[Path]) -> None:
        self.units = len(parts)
        self._parts = parts

    def of(self, split: str) -> Iterator[Any]:
        """The records of a split, one per sample."""
        for part in self._parts:
            yield from json.loads(part.read_bytes())["records"].get(split, ())

    def count(self, split: str) -> int:
        """The number of samples of a split."""
        return sum(1 for _ in self.of(split))


def put(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, path)


@contextlib.contextmanager
def sentences(root: Path) -> Iterator[None]:
    """Turn what the disk says into a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"there is no room left for {root}; make room and run the same command again: it goes on."
            ) from error
        raise UserError(f"{root} cannot be written ({error.strerror}); give another folder with --out.") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{root}/{STATE} is broken ({error}); delete {root} and export again.") from error


def _hashes(unit: Unit) -> dict[str, str]:
    return {tar.name: tar.sha256 for tar in unit.tars}


def _digest(units: Sequence[Unit]) -> str:
    return hashlib.sha256(canonical([_hashes(unit) for unit in units])).hexdigest()
