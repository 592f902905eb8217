"""Exports of a night: written in place below a local root, or in a temporary folder and then uploaded."""

import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from factory.config.keys import PATTERN
from factory.dataset.ordered_map import ordered_map
from factory.dataset.storage import Store
from factory.errors import counted
from factory.export.folder import STATE
from factory.export.run import Export, ExportSummary, Options
from factory.nightly.record import Exported

_UPLOADS = 16
"""Files that are uploaded at a time."""
_STAGES = 3


def export_night(
    root: Store,
    dataset: Store,
    folder: str,
    format_name: str,
    log: Callable[[str], None],
    confirm: Callable[[], None],
) -> Exported:
    """Export the finished shards of a dataset to `folder` of the root, in one format.

    An existing export of fewer shards is completed. `confirm` is called before files in a bucket are replaced; it
    raises an error if another driver has taken over. Raises UserError if a shard is damaged.
    """
    if root.folder is not None:
        return _exported(folder, _export(dataset, root.folder / folder, format_name, log))
    with tempfile.TemporaryDirectory(prefix="factory-export-") as temporary:
        target = Path(temporary) / format_name
        summary = _export(dataset, target, format_name, log)
        log(f"uploading {root.address_of(folder)}")
        upload(target, root, folder, confirm)
    return _exported(folder, summary)


def _export(dataset: Store, target: Path, format_name: str, log: Callable[[str], None]) -> ExportSummary:
    job = Export(dataset, target, Options(format_name), partial=True)
    log(f"exporting {counted(job.samples, 'sample')} as {format_name}")
    return job.run()


def _exported(folder: str, summary: ExportSummary) -> Exported:
    return Exported(path=folder, shards=summary.shards, train=summary.train, val=summary.val)


def upload(source: Path, root: Store, folder: str, confirm: Callable[[], None] = lambda: None) -> None:
    """Upload all files below `source` except the state of the export, then delete other files in the store."""
    names = {f"{folder}/{path.relative_to(source).as_posix()}": path for path in _files(source)}

    def put(item: tuple[str, Path]) -> None:
        confirm()
        root.put_file(*item)

    for stage in range(_STAGES):
        files = [(name, path) for name, path in names.items() if _stage(path) == stage]
        for _ in ordered_map(put, files, _UPLOADS, ahead=8 * _UPLOADS, name="uploads"):
            pass
    others = root.list(folder).keys() - names.keys()
    confirm()
    root.delete_all(others)


def _stage(path: Path) -> int:
    """When a file is uploaded: an export may be read meanwhile, or after the upload was killed.

    For readers of YOLO, an image without labels has no objects. All other files name those of the samples.
    """
    if re.fullmatch(PATTERN, path.stem):
        return 0 if path.suffix == ".txt" else 1
    return 1 if path.suffix == ".parquet" else 2


def _files(source: Path) -> Iterator[Path]:
    return (path for path in source.rglob("*") if path.is_file() and path.relative_to(source).parts[0] != STATE)
