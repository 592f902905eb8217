"""Start Ray on this machine, or join a cluster; decide about its token and its ports explicitly."""

import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from factory.errors import UserError
from factory.recipe_parts import EngineRecipe

_LOCAL_OBJECT_STORE = 256 * 1024 * 1024
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Each thread of a worker would else keep what it once needed, 260 MB in all (docs/performance.md).
    "MALLOC_ARENA_MAX": "1",
}
"""For the processes that Ray starts on this machine."""


@contextmanager
def connected(engine: EngineRecipe, threads: int) -> Iterator[None]:
    """Ray, for the time of the `with`: a cluster of this machine alone, or the one at `engine.address`.

    Standard output is closed meanwhile: Ray prints its daemon's messages there, whatever it is told about logs.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if engine.address is None:
        _start((engine.workers or 1) * threads + engine.detectors)
    else:
        _join(engine.address)
    try:
        with open(os.devnull, "w") as sink, redirect_stdout(sink):
            yield
    finally:
        _leave()


def _start(cpus: int) -> None:
    _keep_token_in_memory()
    import ray

    try:
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, cpus),
            include_dashboard=False,
            object_store_memory=_LOCAL_OBJECT_STORE,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:  # Ray raises Exception itself where its daemons do not come up
        raise UserError(
            f"Ray did not start on this machine: {' '.join(str(error).split())[:300]} Too many other programs, too "
            f"little memory or a full disk prevent it; give the same command again when there is room."
        ) from error


def _leave() -> None:
    import ray

    ray.shutdown()


def _keep_token_in_memory() -> None:
    """A local cluster gets a token of its own that lives in the environment of its processes.

    Left alone, `ray.init()` writes a token into the home folder. One who sets RAY_AUTH_MODE decides otherwise.
    """
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _join(address: str) -> None:
    import ray

    _check_reachable(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())[:300]
        raise UserError(
            f"there is no Ray cluster to join at {address}: {said} Start one with `ray start --head`, give its "
            f"address (host:6379, or auto on one of its machines), or leave --address out to run on this machine."
        ) from error


def _check_reachable(address: str) -> None:
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        if address != "auto":
            raise UserError(f"an address is host:port, ray://host:port or auto, got {address!r}.")
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"nothing answers at {address} ({error}); start a cluster with `ray start --head --port {port}`, check the "
            f"address, or leave --address out to run on this machine."
        ) from error


def resources() -> tuple[float, float]:
    """(CPUs, GPUs) of the cluster as it is now."""
    import ray

    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return float(have.get("CPU", 0)), float(have.get("GPU", 0))


def gpus_per_worker(engine: EngineRecipe) -> float:
    """What a worker asks for: the recipe's, or 1 where the cluster has GPUs. UserError for GPUs that are not here."""
    gpus = resources()[1]
    if engine.gpus_per_worker is None:
        return 1.0 if gpus else 0.0
    if engine.address is None and max(engine.gpus_per_worker, engine.gpus_per_detector) > gpus:
        raise UserError(
            f"a worker asks for {engine.gpus_per_worker:g} GPUs (a detector for {engine.gpus_per_detector:g}), this "
            f"machine has {gpus:g}; give --gpus-per-worker 0 to run on the CPU."
        )
    return engine.gpus_per_worker
