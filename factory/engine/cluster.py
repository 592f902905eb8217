"""Starts Ray on this machine, or joins a cluster."""

import logging
import os
import secrets
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from factory.config.sections import EngineRecipe
from factory.engine import environment, logs
from factory.engine.machine import metrics_port, session_folder, usable_cpus
from factory.engine.quiet import quiet_here
from factory.errors import TransientError, UserError, one_line
from factory.signals import deferred

_log = logging.getLogger(__name__)

_LOCAL_OBJECT_STORE = 256 * 1024 * 1024
_LOOPBACK = "127.0.0.1"
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    **environment.AT_START,
}
"""For the processes that Ray starts on this machine."""
_OPTIMIZE = "PYTHONOPTIMIZE"
"""Removed for them: Ray's dashboard agent cannot be imported without docstrings (level 2), and Ray does not start."""
_TOKEN = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
_SHUTDOWN_TIMEOUT = 10.0
_stuck = False


@contextmanager
def connected(engine: EngineRecipe, threads: int) -> Iterator[None]:
    """Connect to Ray for the duration of the `with`: a local cluster, or the one at `engine.address`.

    If the program is already connected to a cluster, that one is used and left running. Raises UserError or
    TransientError if there is no cluster.
    """
    if is_connected():
        _check_same_cluster(engine.address)
        with logs.captured(printed=True):
            yield
        return
    with _environment():
        try:
            if engine.address is None:
                _start_local((engine.workers or 1) * threads + engine.detectors)
            else:
                _join(engine.address)
            with logs.captured(printed=False):
                yield
        finally:
            _shut_down()


def is_connected() -> bool:
    """Whether the program is connected to a cluster already."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def check_address(address: str | None) -> None:
    """Raise the errors of `connected` that can be found without connecting: address, port, this host."""
    if is_connected():
        _check_same_cluster(address)
    elif address is not None:
        with _environment():
            _check_joinable(address)


@contextmanager
def _environment() -> Iterator[None]:
    """Set variables for Ray. At the end, the program has its own again, such as the token of another cluster."""
    before = {name: os.environ.get(name) for name in (*_ENVIRONMENT, _OPTIMIZE, *_TOKEN)}
    os.environ.pop(_OPTIMIZE, None)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        token = [os.environ.get(name) for name in _TOKEN]
        for name, own in before.items():
            os.environ.pop(name, None)
            if own is not None:
                os.environ[name] = own
        if token != [before[name] for name in _TOKEN]:
            _read_token()


def _check_same_cluster(address: str | None) -> None:
    """UserError if the program is connected to one cluster and the recipe names another."""
    import ray

    if address is None or address == "auto":
        return
    _check_reachable(address)
    current = str(ray.get_runtime_context().gcs_address)
    if not address.startswith("ray://") and current != address:
        raise UserError(
            f"this program is connected to the Ray cluster at {current}, not to {address}; call ray.shutdown() first, "
            f"or omit the address to use that cluster."
        )


@contextmanager
def _own_sigterm_handler() -> Iterator[None]:
    """Keep the handler of SIGTERM: Ray installs its own, which ends the process with an exit code of 1 or 15."""
    from ray._private import utils

    install = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = install


@contextmanager
def _loopback_only() -> Iterator[None]:
    """Make Ray's servers listen on the loopback interface, as they do on macOS and Windows.

    The servers bind to the address of their node, and on Linux, Ray replaces a loopback address with that of the
    machine.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _without_head_services() -> Iterator[None]:
    """Make Ray start neither its API server nor its autoscaler, which a cluster of one machine does not need.

    `ray.init` waits until the API server has been loaded, which takes longer than everything else.
    """
    from ray._private import node

    def start_nothing(self: object, **options: object) -> None:
        pass

    head: Any = node.Node
    before = head.start_api_server, head.start_monitor
    head.start_api_server = head.start_monitor = start_nothing
    try:
        yield
    finally:
        head.start_api_server, head.start_monitor = before


def _start_local(cpus: int) -> None:
    folder, port = session_folder(), metrics_port()
    _keep_token_in_memory()
    import ray

    options: dict[str, Any] = {} if folder is None else {"_temp_dir": folder}
    try:
        with deferred(), quiet_here(), _loopback_only(), _without_head_services(), _own_sigterm_handler():
            ray.init(
                address="local",
                num_cpus=max(usable_cpus(), cpus),
                include_dashboard=False,
                object_store_memory=_LOCAL_OBJECT_STORE,
                logging_level=logging.ERROR,
                _node_ip_address=_LOOPBACK,
                _metrics_export_port=port,
                **options,
            )
    except Exception as error:  # Ray raises plain Exception if its daemons do not come up
        raise TransientError(
            f"Ray did not start on this machine: {one_line(error, 300)} Possible causes are too many other processes, "
            f"too little memory or a full disk; free some resources and rerun the same command."
        ) from error


def _shut_down() -> None:
    """Disconnect; if the head node is gone, `ray.shutdown()` may never return, so wait only for a limited time."""
    if "ray" not in sys.modules:
        return
    import ray

    def shut_down() -> None:
        with quiet_here():
            ray.shutdown()

    thread = threading.Thread(target=shut_down, name="ray-shutdown", daemon=True)
    thread.start()
    thread.join(_SHUTDOWN_TIMEOUT)
    if thread.is_alive():
        global _stuck
        _stuck = True


def is_stuck() -> bool:
    """Whether `ray.shutdown()` hangs because the cluster is gone; then only `os._exit` ends the process."""
    return _stuck


def _keep_token_in_memory() -> None:
    """Give a local cluster a fresh token that exists only in the environment of its processes.

    By default, `ray.init()` writes a token into the home folder. A RAY_AUTH_MODE set by the user is respected.
    """
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ.update(zip(_TOKEN, ("token", secrets.token_hex(32)), strict=True))
        _read_token()


def _read_token() -> None:
    """Let Ray read its configuration and the token again, if it has been imported before and has read others."""
    if "ray" not in sys.modules:
        return
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _join(address: str) -> None:
    import ray

    _check_joinable(address)
    try:
        with quiet_here(), _own_sigterm_handler():
            ray.init(
                address=address,
                logging_level=logging.ERROR,
                log_to_driver=not address.startswith("ray://"),
                runtime_env={"env_vars": environment.AT_START},
            )
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise UserError(
            f"cannot join a Ray cluster at {address}: {one_line(error, 300)} Start one with `ray start --head`, give "
            f"its address (host:6379, or auto on one of its nodes), or omit --address to run on this machine."
        ) from error
    _warn_without_token(address)


def _warn_without_token(address: str) -> None:
    from ray._raylet import (  # type: ignore[attr-defined]
        AuthenticationMode,
        get_authentication_mode,
    )

    if get_authentication_mode() == AuthenticationMode.DISABLED:
        _log.warning(
            "The Ray cluster at %s has no token authentication: anyone who can reach its ports can run code on it. "
            "Start it with RAY_AUTH_MODE=token (docs/cluster.md).",
            address,
        )


def _check_joinable(address: str) -> None:
    _check_reachable(address)
    if not address.startswith("ray://") and address != "auto":
        _check_this_host_is_a_node(address)


def _check_this_host_is_a_node(address: str) -> None:
    """A driver shares memory with a Ray daemon on its host; without one, Ray aborts the process from C++."""
    import ray
    from ray._private.services import find_node_ids
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    try:
        nodes = {node.hex() for node in GcsClient(address=address).get_all_node_info(timeout=10)}
    except (ray.exceptions.RayError, RuntimeError, ConnectionError, ValueError):
        return  # `ray.init` gives a better error message
    if not nodes & set(find_node_ids()):  # type: ignore[no-untyped-call]
        host = address.rpartition(":")[0]
        raise UserError(
            f"this host is not part of the Ray cluster at {address}: run the command on one of its nodes, submit it "
            f"with `ray job submit`, join with `ray start --address {address}`, or give --address ray://{host}:10001."
        )


def _check_reachable(address: str) -> None:
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    host = host.removeprefix("[").removesuffix("]")  # of an IPv6 address, as in [::1]:6379
    if not colon or not port.isdecimal():
        if address != "auto":
            raise UserError(f"an address must be host:port, ray://host:port or auto, got {address!r}.")
        return
    if len(port) > 5 or not 0 < int(port) < 2**16:  # the system would take it modulo 65536
        raise UserError(f"an address must be host:port with a port from 1 to 65535, got {address!r}.")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise TransientError(
            f"nothing is listening at {address} ({error}); start a cluster with `ray start --head --port {port}`, "
            f"check the address, or omit --address to run on this machine."
        ) from error
