"""The folder of an export, which only the same dataset and options can resume."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from factory.config.differences import abbreviated
from factory.errors import UserError, not_written
from factory.export.interface import Format, Unit
from factory.files.atomic import write_atomically
from factory.files.listing import names_in
from factory.files.lock import sole_writer
from factory.files.strict_json import canonical

STATE = ".export"
"""The state of an export, without which it cannot be resumed: its purpose and a part per finished unit."""


class ExportFolder:
    """The folder of an export. `purpose` describes the dataset and options; another purpose is rejected."""

    def __init__(self, root: Path, purpose: Mapping[str, Any]) -> None:
        self.root, self._purpose = root, dict(purpose)
        self._state = root / STATE

    def check(self) -> None:
        """Raise UserError if the folder contains other files or an export with another purpose."""
        with translated_errors(self.root):
            if self.root.exists() and not self.root.is_dir():
                raise UserError(f"{self.root} is a file; give a new or empty folder with --out.")
            claimed = (self._state / "purpose.json").exists()
            other_files = [] if claimed else [name for name in names_in(self.root) if name != STATE]
            existing_purpose = self._read_purpose() if claimed else self._purpose
        if other_files:
            raise UserError(
                f"{self.root} is not empty and not a resumable export: it contains {', '.join(other_files[:3])}; "
                f"give a new or empty folder with --out. Nothing was written."
            )
        changed = [
            f"{name}: {abbreviated(existing_purpose.get(name))} -> {abbreviated(value)}"
            for name, value in self._purpose.items()
            if existing_purpose.get(name) != value
        ]
        if changed:
            raise UserError(
                f"{self.root} contains a different export (in {STATE}): {'; '.join(changed)}. Give the same dataset "
                f"and options to resume it, or another folder with --out. Nothing was written."
            )

    def _read_purpose(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self._state / "purpose.json").read_bytes()))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{self.root}/{STATE} is corrupt ({error}); delete {self.root} and export again."
            ) from error

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Lock the folder; raises TransientError if another process has locked it."""
        self.check()
        with translated_errors(self.root):
            self._state.mkdir(parents=True, exist_ok=True)
            with sole_writer(self._state / "lock", self.root):
                self.check()
                if not (self._state / "purpose.json").exists():
                    write_atomically(self._state / "purpose.json", canonical(self._purpose) + b"\n")
                yield

    def has(self, unit: Unit, output: Format) -> bool:
        """Whether the unit has been written from exactly these shards, and its files still exist."""
        try:
            part = json.loads(self._part(unit.number).read_bytes())
            return part["tars"] == _hashes(unit) and all(
                output.has(unit.number, split, records) for split, records in part["records"].items()
            )
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return False

    def begin(self, unit: Unit) -> None:
        """Prepare to write a unit. The export counts as unfinished until the unit is committed."""
        (self._state / "finished").unlink(missing_ok=True)
        self._part(unit.number).unlink(missing_ok=True)
        self._part(unit.number).parent.mkdir(exist_ok=True)

    def commit(self, unit: Unit, records: Sequence[tuple[str, Any]]) -> None:
        """Mark a unit as written and store the records that `Format.finish` requires."""
        splits: dict[str, list[Any]] = {}
        for split, record in records:
            splits.setdefault(split, []).append(record)
        write_atomically(self._part(unit.number), canonical({"tars": _hashes(unit), "records": splits}) + b"\n")

    def forget_beyond(self, units: int) -> None:
        """Delete the parts of units that no longer exist, for example because a shard was lost."""
        for part in (self._state / "parts").glob("*.json"):
            if part.stem.isdecimal() and int(part.stem) >= units:  # macOS adds ._000000.json to a copied folder
                part.unlink()

    def finished(self, units: Sequence[Unit]) -> bool:
        """Whether `finish` was called for exactly these units."""
        with contextlib.suppress(FileNotFoundError):
            return (self._state / "finished").read_text() == _digest(units)
        return False

    def finish(self, units: Sequence[Unit]) -> None:
        """Mark the export as finished."""
        write_atomically(self._state / "finished", _digest(units).encode())

    def records(self, units: int) -> "FolderRecords":
        """The records of the first `units` units."""
        return FolderRecords([self._part(number) for number in range(units)])

    def _part(self, number: int) -> Path:
        return self._state / "parts" / f"{number:06d}.json"


class FolderRecords:
    """Implements `interface.Records` with one unit in memory at a time."""

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


@contextlib.contextmanager
def translated_errors(root: Path) -> Iterator[None]:
    """Turn file system errors into a UserError with a clear message; a full disk is temporary."""
    try:
        yield
    except OSError as error:
        raise not_written(root, error, "give another folder with --out") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{root}/{STATE} is corrupt ({error}); delete {root} and export again.") from error


def _hashes(unit: Unit) -> dict[str, str]:
    return {tar.name: tar.sha256 for tar in unit.tars}


def _digest(units: Sequence[Unit]) -> str:
    return hashlib.sha256(canonical([_hashes(unit) for unit in units])).hexdigest()
