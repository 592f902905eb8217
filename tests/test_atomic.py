"""Files that are replaced atomically."""

import errno
import os
from pathlib import Path

import pytest

from factory.files.atomic import replaced_atomically, write_atomically


def test_interrupted_write_keeps_the_old_file_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_atomically(path, "old")
    with pytest.raises(KeyboardInterrupt), replaced_atomically(path) as partial:  # noqa: PT012
        partial.write_text("half")
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]
    assert path.read_text() == "old"


def test_text_is_written_as_utf8_without_translation_of_line_ends(tmp_path: Path) -> None:
    write_atomically(tmp_path / "names.txt", "chaise longue é\n")
    assert (tmp_path / "names.txt").read_bytes() == "chaise longue é\n".encode()


def test_file_systems_without_fsync_are_supported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network and user-space file systems answer EINVAL."""

    def fsync(descriptor: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(tmp_path / "results.json", "new")
    assert (tmp_path / "results.json").read_text() == "new"
