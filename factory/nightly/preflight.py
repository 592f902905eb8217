"""Checks before Ray or a GPU is requested, to find problems that would otherwise end the night after hours."""

import datetime
import logging
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from factory.config.recipe import Recipe
from factory.config.sections import EngineRecipe, GeneratorRecipe
from factory.dataset.continuation import NIGHT
from factory.dataset.storage import Store, StoreFullError
from factory.dataset.storage_errors import ignores_conditions
from factory.dataset.stored_recipe import RECIPE
from factory.errors import UserError
from factory.files.paths import check_writable_folder
from factory.generation.hardware import local_gpus
from factory.generation.shard_job import versions
from factory.nightly.config import Budget
from factory.nightly.record import DATASET

_log = logging.getLogger(__name__)

PROBE = "preflight-"
_RESERVE = 256 * 2**20
"""Bytes that must stay free besides the samples, for logs and records."""
_DEFAULT_SIDE = 512
_BYTES_PER_PIXEL = 0.5
_BYTES_PER_SAMPLE = 6 * 1024
"""An estimate without any measurement: a JPEG of quality 95, the label image, the annotation and padding."""
_WORKER_TIMEOUT = 120.0


def check_store(root: Store, date: datetime.date) -> None:
    """UserError unless the store of the nights is writable and supports conditional writes; leaves no file behind."""
    name = f"{date.isoformat()}/{PROBE}{secrets.token_hex(8)}"
    root.create(name, b"first")
    second = root.create(name, b"second")
    content = root.get(name)
    root.delete(name)
    if second or content != b"first":
        raise ignores_conditions(root.address, name)
    if root.get(name) is not None:
        raise UserError(
            f"{root.address} still returns {name} after it was deleted; give a store with strong consistency."
        )


def check_folder(root: Store, date: datetime.date) -> None:
    """UserError if the root cannot be written or is a dataset, or if the folder of the night was not made by a night.

    Otherwise, `keep` could delete the folder later. Nothing is written.
    """
    if root.folder is not None:
        check_writable_folder(root.folder, "root")
    if root.get(RECIPE) is not None:
        raise UserError(f"{root.address} is a dataset; give another `root`, a folder for nights.")
    folder = date.isoformat()
    if root.get(f"{folder}/{NIGHT}") is not None:
        return
    known = (f"{folder}/{PROBE}", f"{folder}/{DATASET}/lease.json", f"{folder}/{DATASET}/.lock")
    foreign = [name for name in root.entries(folder, limit=10) if not name.startswith(known)]
    if foreign:
        raise UserError(
            f"{root.address_of(folder)} was not made by `factory nightly`: it contains "
            f"{', '.join(foreign[:3])}, but no {NIGHT}. Move it away, or give another `root` or --date."
        )


def check_disk(root: Store, bytes_per_sample: float, existing: int, new_samples: int, exports: Sequence[str]) -> None:
    """StoreFullError if a local disk cannot hold what the night writes: `new_samples` more samples, and its exports.

    With a root in a bucket, each export needs a temporary folder on this machine.
    """
    export = (existing + new_samples) * bytes_per_sample
    if root.folder is not None:
        # Not a smaller `keep`, which deletes nothing until a night succeeds.
        needed, advice = new_samples * bytes_per_sample + len(exports) * export, "delete old nights by hand"
        _check_free(root.folder, needed, advice)
    elif exports:
        _check_free(Path(tempfile.gettempdir()), export, "set TMPDIR to a folder on a larger disk")


def _check_free(folder: Path, needed: float, advice: str) -> None:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed + _RESERVE:
        raise StoreFullError(
            f"{folder} has {free / 1e9:.1f} GB of free space, but the night needs about "
            f"{(needed + _RESERVE) / 1e9:.1f} GB; free some space, {advice}, or give a smaller dataset."
        )


def estimated_size(recipe: Recipe) -> float:
    """The expected bytes per sample, from the size of the images."""
    height, width = recipe.generator.height, recipe.generator.width
    if width is None or height is None:
        default = _default_size(recipe.generator)
        height, width = height or default[0], width or default[1]
    return _BYTES_PER_PIXEL * width * height + _BYTES_PER_SAMPLE


def _default_size(generator: GeneratorRecipe) -> tuple[int, int]:
    """(height, width) of a model's images by its configuration; a typical size if it cannot be read."""
    from factory.generator.layout import default_size, family_in, pixels_per_latent, read_config, read_index
    from factory.generator.load import config_folder

    usual = _DEFAULT_SIDE, _DEFAULT_SIDE
    try:
        folder = config_folder(generator)
        family = family_in(read_index(folder))
        factor = pixels_per_latent(read_config(folder, "vae"))
        return default_size(family, read_config(folder, family.denoiser), factor) or usual
    except (UserError, TypeError, ValueError):
        return usual


def check_gpu_budget(engine: EngineRecipe, budget: Budget | None) -> None:
    """UserError if a budget of GPU-hours cannot be used up because no worker uses a GPU."""
    if budget is None or budget.gpu_hours is None or (engine.address is not None and engine.gpus_per_worker != 0):
        return
    if engine.gpus_per_worker == 0 or not local_gpus():
        raise UserError(
            "budget.gpu_hours is never used up, because the workers of this night run on CPUs; give budget.hours or "
            "budget.until."
        )


def check_workers(engine: EngineRecipe, threads: int) -> None:
    """UserError if a machine of the cluster has other library versions than the driver.

    Queries each running node without reserving CPUs or GPUs. Nodes that join later are not checked, and neither are
    nodes that are lost or do not answer in time, which is logged. Every receipt contains the versions of its worker. A
    local run has no other machines.
    """
    if engine.address is None:
        return
    import ray

    from factory.engine.capacity import alive_nodes
    from factory.engine.cluster import connected

    with connected(engine, threads):
        nodes = alive_nodes()
        remote = ray.remote(num_cpus=0, max_retries=0)(versions)
        host_of = {
            remote.options(scheduling_strategy=_on(node["NodeID"])).remote(): node["NodeManagerHostname"]
            for node in nodes
        }
        ready, pending = ray.wait(list(host_of), num_returns=len(host_of), timeout=_WORKER_TIMEOUT)
        if pending:
            hosts = ", ".join(sorted(host_of[reference] for reference in pending))
            _log.warning("Versions not checked on %s: no answer within %.0f s.", hosts, _WORKER_TIMEOUT)
        host_versions = []
        for reference in ready:
            try:
                host_versions.append((host_of[reference], ray.get(reference)))
            except (ray.exceptions.NodeDiedError, ray.exceptions.TaskUnschedulableError):
                _log.warning("Versions not checked on %s: the machine was lost.", host_of[reference])
            except ray.exceptions.RayError as error:
                raise UserError(
                    f"a machine of the cluster cannot run this program: {' '.join(str(error).split())[-300:]}. Install "
                    f"the driver's version of factory on every node."
                ) from error
    check_versions(host_versions)


def _on(node: str) -> object:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)


def check_versions(host_versions: Iterable[tuple[str, dict[str, str]]]) -> None:
    """UserError if a host's versions, as (host, versions by library), differ from those of this process."""
    driver = versions()
    for host, host_has in host_versions:
        different = [
            f"{name} {host_has.get(name)} instead of {driver[name]}"
            for name in driver
            if host_has.get(name) != driver[name]
        ]
        if different:
            raise UserError(
                f"{host} has other versions than the driver: {', '.join(different)}. The same recipe could give other "
                f"bytes there; install the same versions on every node."
            )
