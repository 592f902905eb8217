"""Volumes: no hard links, `lost+found` at the root, and file names that are not valid UTF-8."""

import errno
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from factory.config.recipe import Recipe
from factory.config.vocabulary import voc
from factory.dataset.storage import Store
from factory.dataset.storage_listing import Entry
from factory.dataset.stored_recipe import init_or_resume
from factory.dataset.verify import verify
from factory.errors import UserError
from factory.export.folder import ExportFolder
from factory.files import lock
from factory.files.digest import folder_digest
from factory.labelled.coco import CocoFolder
from factory.labelled.voc import VocFolder
from tests.support.program import PROGRAM
from tests.support.seccomp import can_refuse_hard_links

_ODD = b"x\xff.tar"


def _in_process(code: str, *arguments: object) -> str:
    """Run a program in a new process, because privileges that it drops cannot be restored; returns its output."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.mark.skipif(not can_refuse_hard_links(), reason="requires a seccomp filter, which only Linux has")
@pytest.mark.parametrize("error", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_create_without_hard_links_is_atomic(tmp_path: Path, error: int) -> None:
    printed = _in_process(
        """
        import json, os, sys
        from tests.support.seccomp import refuse_hard_links
        refuse_hard_links(int(sys.argv[2]))
        from concurrent.futures import ThreadPoolExecutor
        from factory.dataset.storage import Store
        folder = sys.argv[1]
        open(f"{folder}/.lock", "w").close()
        try:
            os.link(f"{folder}/.lock", f"{folder}/linked")
            sys.exit("hard links are still possible")
        except OSError as error:
            assert error.errno == int(sys.argv[2])
        stores = [Store(folder) for _ in range(4)]
        with ThreadPoolExecutor(8) as pool:
            jobs = [(n, pool.submit(stores[n % 4].create, "train/0.tar", bytes([n]) * 100_000)) for n in range(40)]
        stores[0].create_same("same", b"1")
        stores[1].create_same("same", b"1")
        assert stores[2].compare_and_swap("lease", b"1", None) and stores[3].compare_and_swap("lease", b"2", b"1")
        print(json.dumps([n for n, job in jobs if job.result()]))
        """,
        tmp_path,
        error,
    )
    (first,) = json.loads(printed)
    store = Store(str(tmp_path))
    assert store.get("train/0.tar") == bytes([first]) * 100_000
    assert store.get("lease") == b"2"
    assert sorted(os.listdir(tmp_path / "train")) == ["0.tar"]


@pytest.mark.skipif(not can_refuse_hard_links(), reason="requires a seccomp filter, which only Linux has")
def test_export_without_flock_warns_and_writes_the_same_files(tmp_path: Path) -> None:
    printed = _in_process(
        """
        import sys
        from pathlib import Path
        from tests.support.seccomp import refuse_locks
        from tests.support.export_datasets import make_dataset, run
        out = Path(sys.argv[1])
        store, _ = make_dataset(out / "dataset", [0, 1])
        run(store, out / "locked", "yolo", partial=True)
        refuse_locks()
        sys.stderr = sys.stdout
        run(store, out / "unlocked", "yolo", partial=True)
        """,
        tmp_path,
    )
    assert "is on a file system without locks; write to it with one process at a time." in printed
    first, second = ({path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")
                      if path.is_file()} for name in ("locked", "unlocked"))  # fmt: skip
    assert first
    assert first == second


def test_files_of_a_folder_are_listed_although_a_link_to_it_comes_first(tmp_path: Path) -> None:
    """The client lists nothing at all if a link leads to a directory above it; the own listing replaces it."""
    for name in ("a/1", "b/2", "c/3"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(name)
    for folder in ("a", "c"):
        (tmp_path / folder / "link").symlink_to(tmp_path / "b")
        (tmp_path / folder / "up").symlink_to(tmp_path)
    (tmp_path / "c" / "dangling").symlink_to(tmp_path / "nowhere")
    listed = Store(str(tmp_path)).list("")
    assert {"a/1", "b/2", "c/3", "a/link/2", "c/link/2"} == set(listed)


def test_volume_root_with_lost_and_found_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "lost+found" / "#12345").touch()
    (tmp_path / "lost+found").chmod(0)
    program = """
        import sys
        from pathlib import Path
        from tests.support.seccomp import drop_root
        drop_root()
        from factory.dataset.stored_recipe import existing_recipe
        from factory.errors import UserError
        from factory.export.folder import ExportFolder
        from factory.dataset.storage import Store
        try:
            assert existing_recipe(Store(sys.argv[1])) is None
            ExportFolder(Path(sys.argv[1]), {}).check()
            print("accepted")
        except UserError as error:
            print(error)
        """
    assert _in_process(program, tmp_path) == "accepted\n"
    (tmp_path / "notes.txt").touch()
    assert "has no recipe.yaml, but contains notes.txt;" in _in_process(program, tmp_path)
    (tmp_path / "notes.txt").unlink()
    (tmp_path / "private").mkdir(mode=0)
    assert f"Permission denied: '{tmp_path}/private'" in _in_process(program, tmp_path)
    (tmp_path / "private").chmod(0o700)
    (tmp_path / "lost+found").chmod(0o700)


def test_lost_and_found_does_not_hide_other_files(tmp_path: Path, tiny_recipe: Recipe) -> None:
    (tmp_path / "lost+found").mkdir()
    for number in range(20):
        (tmp_path / "lost+found" / f"#{number}").touch()
    (tmp_path / "z.txt").touch()
    store = Store(str(tmp_path))
    with pytest.raises(UserError, match=r"has no recipe.yaml, but contains z.txt;"):
        init_or_resume(store, tiny_recipe)
    with pytest.raises(UserError, match=r"contains z.txt;"):
        ExportFolder(tmp_path, {}).check()
    (tmp_path / "z.txt").unlink()
    init_or_resume(store, tiny_recipe)
    ExportFolder(tmp_path / "export", {}).check()


def test_non_utf8_file_name_is_reported_as_foreign(tmp_path: Path, tiny_recipe: Recipe) -> None:
    store = Store(str(tmp_path))
    init_or_resume(store, tiny_recipe)
    store.create("train/000000.tar", b"1")
    before = store.entries("train")
    for folder in ("train", "receipts", "index", "quarantine"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (Path(os.fsdecode(os.path.join(os.fsencode(tmp_path / folder), _ODD)))).touch()
    after = store.entries("train")
    assert after.pop("train/x\N{REPLACEMENT CHARACTER}.tar").size == 0
    assert after == before == {"train/000000.tar": Entry(1, after["train/000000.tar"].tag)}
    report = verify(store)
    assert report.foreign == [f"{folder}/x\N{REPLACEMENT CHARACTER}.tar" for folder in ("train", "receipts")]
    assert report.orphans == {"train/000000.tar": 0}
    with pytest.raises(UserError, match="was created with n = 12"):
        init_or_resume(store, tiny_recipe.model_copy(update={"n": 8}))


def test_folder_with_a_non_utf8_file_name_is_not_empty(tmp_path: Path, tiny_recipe: Recipe) -> None:
    Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), _ODD))).touch()
    for claim in (
        lambda: init_or_resume(Store(str(tmp_path)), tiny_recipe),
        lambda: ExportFolder(tmp_path, {}).check(),
    ):
        with pytest.raises(UserError, match="contains x\N{REPLACEMENT CHARACTER}\\.tar;"):
            claim()


def test_symlink_loop_ends_a_walk(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "train" / "itself").symlink_to(tmp_path / "train" / "itself")
    Store(str(tmp_path)).create("train/0.tar", b"1")
    assert list(Store(str(tmp_path)).list("train")) == ["train/0.tar"]


def test_model_digest_includes_non_utf8_file_names(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = folder_digest(tmp_path)
    Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), _ODD))).touch()
    assert folder_digest(tmp_path) != before


def test_model_digest_includes_linked_folders(tmp_path: Path) -> None:
    """In a pipeline assembled from links, the weights are behind them."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "unet").symlink_to(tmp_path / "weights")
    (tmp_path / "model" / "unet" / "loop").symlink_to(tmp_path / "model")
    digests = []
    for content in ("first", "second"):
        (tmp_path / "weights" / "model.safetensors").write_text(content)
        digests.append(folder_digest(tmp_path / "model"))
    assert digests[0] != digests[1]


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """A VOC folder with a non-UTF-8 name that contains an image and a second image with a non-UTF-8 name."""
    root = tmp_path / os.fsdecode(b"voc\xff")
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / part).mkdir(parents=True)
    for name in ("a", os.fsdecode(b"b\xff")):
        with open(root / "JPEGImages" / f"{name}.jpg", "wb") as stream:
            Image.new("RGB", (16, 16)).save(stream, "JPEG")
        with open(root / "SegmentationClass" / f"{name}.png", "wb") as stream:
            Image.new("L", (16, 16), 3).save(stream, "PNG")
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n")
    return root


def test_labelled_image_with_a_non_utf8_name_is_skipped(labelled: Path) -> None:
    folder = VocFolder(labelled, "train", voc())
    folder.check()
    assert folder.keys == ["a"]
    assert folder.load("a").labels.max() == 3
    (labelled / "ImageSets" / "Segmentation" / "train.txt").write_bytes(b"a\nb\xff\n")
    with pytest.raises(UserError, match="save it as UTF-8"):
        VocFolder(labelled, "train", voc())


def test_coco_file_names_and_ids_with_surrogates(labelled: Path, tmp_path: Path) -> None:
    def opened(number: object, name: str) -> CocoFolder:
        square = {"image_id": number, "category_id": 1, "segmentation": [[0, 0, 9, 0, 9, 9]]}
        image = {"id": number, "file_name": name, "height": 16, "width": 16}
        content = {"images": [image], "categories": [{"id": 1, "name": "person"}], "annotations": [square]}
        (tmp_path / "instances.json").write_text(json.dumps(content))
        folder = CocoFolder(labelled / "JPEGImages", tmp_path / "instances.json", voc())
        folder.check()
        return folder

    assert opened(1, "b\udcff.jpg").load("1").labels.any()
    with pytest.raises(UserError, match="does not exist"):
        opened(1, "\ud800.jpg")
    with pytest.raises(UserError, match="id must be an integer or a string"):
        opened("\ud800", "a.jpg")


def test_recipe_with_a_non_utf8_folder_is_rejected_before_writing(labelled: Path, tmp_path: Path) -> None:
    command = ["invert", "--root", str(labelled), "--shards", str(tmp_path / "out"), "--method", "noise"]
    result = subprocess.run([*PROGRAM, *command], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr
    assert "cannot be written as UTF-8" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("look", [1, 2])
def test_the_lock_file_of_a_killed_process_is_removed_once(
    look: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `flock`: a process that saw the old file must not remove that of the process that replaced it.

    The first process is stopped after each of its looks at the old file until the other one has the lock.
    """
    path, looks, inside, most = tmp_path / ".lock.held", [0], [0], [0]
    stopped, entered, is_abandoned = threading.Event(), threading.Event(), lock._is_abandoned

    def stop_after_look(file: Path) -> bool:
        found = is_abandoned(file)
        if threading.current_thread() is first and file == path:
            looks[0] += 1
            if looks[0] == look:
                stopped.set()
                entered.wait(0.3)  # in vain if the other process waits, as it should after the second look
        return found

    def hold() -> None:
        with lock._lock_file(path):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            entered.set()
            time.sleep(0.1)  # so that the other one would be here, too
            inside[0] -= 1

    path.touch()
    os.utime(path, (0, 0))
    monkeypatch.setattr(lock, "_is_abandoned", stop_after_look)
    first, other = (threading.Thread(target=hold) for _ in range(2))
    first.start()
    assert stopped.wait(30)
    other.start()
    for thread in (first, other):
        thread.join()
    assert most == [1]
    assert not list(tmp_path.iterdir())
