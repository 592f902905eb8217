"""The image of jobs/container, built without a registry, and a night in it."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster
IMAGE = "localhost/factory:test"
ROOT = Path(__file__).parent.parent.parent
BASE = os.environ.get("FACTORY_TEST_BASE", "")
"""An image with Python to build from, such as python:3.11-slim-bookworm; by default, Debian from debootstrap."""
PIP_CONF = os.environ.get("FACTORY_TEST_PIP_CONF", "")
"""A pip.conf whose index has a build of torch for CPUs. Without it, the CUDA variant is built: several gigabytes."""
VOLUMES = os.environ.get("FACTORY_TEST_VOLUMES", "").split()
"""Folders that this pip.conf names, as HOST:IMAGE:ro."""
STORAGE = os.environ.get("FACTORY_TEST_STORAGE", "")
"""A folder that keeps images, so that the next run builds only what has changed."""
VARIANT = "cpu" if PIP_CONF else "cuda"


class Buildah:
    """buildah with a storage of its own."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("buildah")
        assert program is not None, "buildah is not installed; `make test-cluster` installs it"
        self._command = [program, "--root", str(folder / "storage"), "--runroot", str(folder / "run")]

    def __call__(self, *arguments: object, ok: bool = True) -> str:
        done = subprocess.run([*self._command, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 or not ok, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout.strip()


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Buildah:
    return Buildah(Path(STORAGE) if STORAGE else tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def base(buildah: Buildah, tmp_path_factory: pytest.TempPathFactory) -> str:
    if BASE:
        return BASE
    if "localhost/base" in buildah("images", "--format", "{{.Name}}").split():
        return "localhost/base"
    root = tmp_path_factory.mktemp("debian")
    packages = "python3,python3-venv,ca-certificates"
    subprocess.run(["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", root], check=True)
    container = buildah("from", "scratch")
    buildah("add", "--quiet", container, root, "/")
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    buildah("config", "--env", f"PATH={path}", container)
    buildah("commit", "--quiet", "--rm", container, "localhost/base")
    shutil.rmtree(root)
    return "localhost/base"


@pytest.fixture(scope="module")
def container(buildah: Buildah, base: str) -> Iterator[str]:
    volumes = [option for volume in VOLUMES for option in ("--volume", volume)]
    options = ["--build-arg", f"BASE={base}", "--build-arg", f"VARIANT={VARIANT}"]
    options += ["--secret", f"id=pip,src={PIP_CONF}"] if PIP_CONF else []
    ignore = ["--ignorefile", "jobs/container/Dockerfile.dockerignore"]
    file = ["--file", "jobs/container/Dockerfile", "--tag", IMAGE]
    buildah("bud", "--layers", "--isolation", "chroot", "--network", "host", *volumes, *options, *ignore, *file, ".")
    name = buildah("from", IMAGE)
    yield name
    buildah("rm", name)


def test_image_is_not_root_and_holds_neither_secrets_nor_caches(buildah: Buildah, container: str) -> None:
    about = json.loads(buildah("inspect", "--type", "image", IMAGE))["OCIv1"]["config"]
    assert (about["User"], about["Entrypoint"]) == ("1000:1000", ["tini", "--", "factory"])
    assert list(about["Volumes"]) == ["/models"]
    script = "id -u; find /root/.cache /var/lib/apt/lists /etc/pip.conf -type f 2>/dev/null; touch /models/x /data/x"
    assert buildah("run", "--isolation", "chroot", container, "--", "sh", "-c", script) == "1000"


def test_image_has_the_pinned_versions(buildah: Buildah, container: str) -> None:
    run = ["run", "--isolation", "chroot", container, "--"]
    versions = pins_of(buildah(*run, "python3", "-m", "pip", "freeze", "--all"))
    assert len(versions) > 60
    pins = pins_of((ROOT / "constraints.txt").read_text())
    plain = {name: version.partition("+")[0] for name, version in versions.items()}
    assert {name: version for name, version in plain.items() if pins.get(name, version) != version} == {}
    assert versions["torch"].endswith("+cpu") == (VARIANT == "cpu")


def pins_of(text: str) -> dict[str, str]:
    """Normalised name -> version, from lines such as `name==version ; marker`."""
    lines = (line.partition(";")[0].strip() for line in text.splitlines())
    pairs = (line.split("==") for line in lines if "==" in line)
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def test_demo_runs_in_the_image(buildah: Buildah, container: str) -> None:
    run = ["run", "--isolation", "chroot", "--env", "OMP_NUM_THREADS=1", container, "--", "tini", "--", "factory"]
    made = json.loads(buildah(*run, "generate", "--classes", "coco", "--n", "4", "--out", "/data/set", "--json"))
    assert made["samples"] == 4
    assert json.loads(buildah(*run, "verify", "/data/set", "--json"))["damaged"] == {}
