"""Keeps what an evaluation has generated and measured, so that an interrupted one resumes."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from factory.files.atomic import replaced_atomically, write_atomically
from factory.files.decode import read_json_object
from factory.files.strict_json import dumps

_BATCH = 25

Metrics = TypeVar("Metrics", bound=Mapping[str, object])


class PartialResults:
    """Metrics by name in `folder/partial/metrics.json`, and images beside them.

    `identity` describes the models and options, as JSON values. Results of another identity are deleted, and so are
    images without metrics, which an interrupted `delete` has left.
    """

    def __init__(self, folder: Path, identity: Mapping[str, object]) -> None:
        self._folder = folder / "partial"
        self._file = self._folder / "metrics.json"
        self._saved: dict[str, Any] = {"identity": dict(identity), "metrics": {}}
        saved = _read(self._file)
        if saved.get("identity") == self._saved["identity"]:
            self._saved = saved
            return
        if self._folder.exists():
            self.delete()
        self._folder.mkdir(parents=True)
        self._write()

    def metrics(self, name: str, measure: Callable[[], Metrics]) -> Metrics:
        """The metrics that `measure` returns, JSON values; measured once and then read from the file."""
        metrics = self._saved["metrics"]
        if name not in metrics:
            metrics[name] = measure()
            self._write()
        measured: Metrics = metrics[name]
        return measured

    def images(
        self,
        name: str,
        count: int,
        draw: Callable[[range], list[Image.Image]],
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Image.Image]:
        """`count` images, which `draw` generates for a range of indices; those that exist are read."""
        pictures: list[Image.Image] = []
        for first in range(0, count, _BATCH):
            indices = range(first, min(first + _BATCH, count))
            files = [self._folder / f"{name}-{index:05d}.png" for index in indices]
            if all(file.exists() for file in files):
                pictures += [_opened(file) for file in files]
                continue
            drawn = draw(indices)
            for picture, file in zip(drawn, files, strict=True):
                with replaced_atomically(file) as partial:
                    picture.save(partial, format="PNG")
            pictures += drawn
            progress(len(pictures))
        return pictures

    def delete(self) -> None:
        """Delete the metrics and images."""
        shutil.rmtree(self._folder)

    def _write(self) -> None:
        write_atomically(self._file, dumps(self._saved, indent=1) + "\n")


def _read(file: Path) -> dict[str, Any]:
    """The content of the file of metrics; empty if there is none, or if it is damaged."""
    try:
        return read_json_object(file)
    except (FileNotFoundError, ValueError):
        return {}


def _opened(file: Path) -> Image.Image:
    with Image.open(file) as picture:
        return picture.convert("RGB")
