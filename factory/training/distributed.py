"""One training run on several devices, through Ray Train."""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from factory.config.sections import EngineRecipe
from factory.errors import TransientError, UserError, broken_disk, full_disk, one_line
from factory.signals import stop_requests
from factory.training.devices import AUTO

if TYPE_CHECKING:
    from factory.engine.capacity import ClusterResources


class DistributedRun(Protocol):
    """The options of a run. The run must be a dataclass, because each process receives a copy with its own device."""

    @property
    def out(self) -> str:
        """The folder of the run."""
        ...

    @property
    def batch(self) -> int | None:
        """Samples per step over all devices. Required for several devices."""
        ...

    @property
    def device(self) -> str:
        """`auto`, `cpu` or `cuda`."""
        ...

    @property
    def threads(self) -> int:
        """CPU threads per process; 0 for all."""
        ...


def check_devices(devices: int, device: str, address: str | None) -> None:
    """UserError for options that do not fit the number of devices and would therefore have no effect."""
    if devices == 1 and address is not None:
        raise UserError(
            f"--address {address} has no effect with one device, because the training then runs in this process; add "
            f"--devices, or leave --address out."
        )
    if devices > 1 and device not in (AUTO, "cpu", "cuda"):
        raise UserError(f"--device must be {AUTO}, cpu or cuda if there are several --devices, got {device!r}.")


def uses_gpus(device: str, devices: int, cluster: "ClusterResources") -> bool:
    """Whether processes train on GPUs. UserError if the cluster has too few GPUs or CPUs, and adds none on demand.

    Ray waits without end for resources that no node has.
    """
    gpus = device != "cpu" and (device != AUTO or cluster.gpus > 0)
    available = cluster.gpus if gpus else cluster.cpus
    if available < devices and not cluster.scales:
        kind, remedy = ("GPUs", ", or --device cpu") if gpus else ("CPUs", "")
        raise UserError(
            f"--devices {devices} requires {devices} {kind}, and the cluster has {available:g}; give fewer "
            f"--devices{remedy}."
        )
    return gpus


def train_on_several(
    train_here: Callable[[Any], Path], run: DistributedRun, devices: int, engine: EngineRecipe
) -> Path:
    """Call `train_here(run)` in `devices` processes of a Ray cluster, each with its part of every batch.

    `run.out` and the data must have the same paths on all machines; the processes receive the driver's environment
    variables for buckets and the model hub. Raises KeyboardInterrupt after a signal, once the checkpoint of the current
    step is written, TransientError if processes or the cluster are lost, and UserError if the batch cannot be divided,
    if there are too few GPUs or CPUs, or if a process raises one.
    """
    if run.batch is None or run.batch % devices:
        raise UserError(
            f"--batch {run.batch} is not divisible by the {devices} devices; choose a multiple of {devices}."
        )
    from factory.engine.capacity import Capacity, cluster_resources
    from factory.engine.cluster import connected
    from factory.engine.environment import of_the_driver
    from factory.engine.health import lost_cluster
    from factory.engine.quiet import quiet
    from factory.engine.view import ClusterView

    out = Path(run.out).absolute()
    with connected(engine.model_copy(update={"workers": devices + 1}), max(1, run.threads)):
        import ray.train  # imported here because it reads the environment that `connected` prepares
        from ray.train.torch import TorchTrainer

        gpus = uses_gpus(run.device, devices, cluster_resources())
        trainer = TorchTrainer(
            _with_variables(of_the_driver(), _train_process),
            train_loop_config={"train_here": train_here, "run": run, "gpus": gpus},
            scaling_config=ray.train.ScalingConfig(num_workers=devices, use_gpu=gpus),
            run_config=ray.train.RunConfig(name="train", storage_path=str(out / "ray")),
        )
        with quiet(), ClusterView(Capacity(engine, max(1, run.threads))) as view:
            _fit(trainer, out, lambda stopping: lost_cluster(view, engine.address, stopping))
    return out / "model"


def _fit(trainer: Any, folder: Path, lost: Callable[[bool], str | None]) -> None:
    """Run the training. The first SIGINT or SIGTERM ends it after the current step and its checkpoint.

    Then KeyboardInterrupt is raised. A second signal interrupts immediately. The training processes receive no signal,
    so a file in the folder of the run tells them to stop. `fit` runs in a separate thread because Ray handles SIGINT
    in the main thread and would stop the processes in the middle of a step. `lost(stopping)` is how the cluster was
    lost, if it was: `fit` may then never return.

    A signal to the whole process group, as of Slurm, `timeout` and systemd, ends Ray too. The failures that follow from
    it are not reported.
    """
    from factory.training.loop import STOP

    stop, fitted = folder / STOP, Future[None]()
    stop.unlink(missing_ok=True)
    problem: str | None = None

    def fit() -> None:
        try:
            fitted.set_result(trainer.fit())
        except BaseException as error:
            fitted.set_exception(error)

    with stop_requests() as stopping:
        threading.Thread(target=fit, name="train", daemon=True).start()
        while problem is None and not wait([fitted], timeout=0.2).done:
            if stopping() and not stop.exists():
                folder.mkdir(parents=True, exist_ok=True)
                stop.touch()
            problem = lost(stopping())
        error = fitted.exception() if fitted.done() else None
        failures = list(getattr(error, "worker_failures", {}).values()) or [error]
        stop.unlink(missing_ok=True)
        if own := next((failure for failure in failures if isinstance(failure, UserError)), None):
            raise own from None
        if stopping():
            raise KeyboardInterrupt
        processes_lost = any(type(failure).__module__.startswith("ray.") for failure in failures)
        if problem is None and error is not None and processes_lost:
            problem = f"the training processes were lost: {one_line(error, 300).rstrip('.')}"
        if problem is not None:
            raise TransientError(f"{problem}. The last checkpoint is kept; rerun the same command to resume.")
        if error is not None:
            raise error


def _with_variables(
    variables: Mapping[str, str], function: Callable[[dict[str, Any]], None]
) -> Callable[[dict[str, Any]], None]:
    """The function, called with the driver's environment variables, because the process may run on another machine.

    They are part of the function and not of its configuration, which the dashboard of Ray shows.
    """

    def with_variables(config: dict[str, Any]) -> None:
        from factory.engine.environment import adopt

        adopt(variables)
        function(config)

    return with_variables


def _train_process(config: dict[str, Any]) -> None:
    """Run in each process: the same training, on the device of the process. Only the first process writes."""
    device = "cpu"
    if config["gpus"]:
        import ray.train.torch

        device = str(ray.train.torch.get_device())
    # A process that was asked to stop has written its checkpoint; Ray must not count this as a failure.
    with suppress(KeyboardInterrupt):
        try:
            config["train_here"](replace(config["run"], device=device))
        except Exception as error:
            # Here, because the driver receives the error without its cause.
            if full := full_disk(error):
                raise TransientError(f"cannot write: {full}. Free some space and rerun the same command.") from None
            if broken := broken_disk(error):
                raise UserError(broken) from None
            raise
