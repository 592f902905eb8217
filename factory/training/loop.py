"""The training loop: exact resumption, progress, metrics and sample sheets."""

import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from factory.errors import one_line
from factory.files.atomic import make_weights_readable
from factory.files.lock import sole_writer
from factory.signals import stop_requests
from factory.training.checkpoint import not_finite, restore, save_checkpoint
from factory.training.memory import enough_memory
from factory.training.muon import Muon, muon_groups
from factory.training.options import CHECKPOINT, TrainOptions, cannot_start, check_start
from factory.training.processes import average_over_processes, rank_and_world
from factory.training.progress import Progress

_log = logging.getLogger(__name__)

_GRADIENT_CHECK = 10
"""Steps after which every weight should have a gradient; in the first step, layers that start at zero block some."""
_MAX_UNSAVED = 600.0
"""Seconds between checkpoints at most: 200 steps of a large model on a CPU take hours."""
_SEEDS_PER_PROCESS = 2_654_435_761
"""Distance between the seeds of processes, large also modulo 2**32: PyTorch's CPU generator ignores higher bits."""
STOP = "stop"
"""A file in the folder of a run that tells all training processes to stop, because they do not receive Ctrl-C."""


class TrainTask(Protocol):
    """The part of a training that differs between models."""

    name: str
    model: nn.Module
    """All trained weights as one module."""

    @property
    def depends_on(self) -> Mapping[str, str]:
        """What a run depends on besides its options, such as its data. A checkpoint with other values is rejected."""
        ...

    def loss(self, step: int, batch: int, seed: int) -> Tensor:
        """The loss of a step's batch, a scalar. The batch must depend only on the arguments, so that runs can resume.

        If several processes train together, it is the loss of this process's part; the loop averages their gradients.
        """
        ...

    def sample_sheet(self, model: nn.Module) -> Image.Image:
        """An image that shows the current results of `model`."""
        ...

    def metrics(self, model: nn.Module) -> dict[str, float]:
        """Metrics of `model` by name; may be empty."""
        ...

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the trained model."""
        ...

    def load(self, folder: Path) -> None:
        """Load the weights that `save` wrote to `folder`."""
        ...


def train(task: TrainTask, options: TrainOptions, out: Path, report: Callable[[str], None] = _log.info) -> Path:
    """Train to `options.steps`, starting from the last checkpoint in `out` if there is one. Returns the model's folder.

    After an interruption, the same call resumes from the last checkpoint. Batches and noise depend only on the step, so
    the result is the same. If several processes train together, only the first one writes and reports. UserError if
    `out` contains another run, or if the loss or a weight becomes NaN or infinite; the last checkpoint is then intact.
    TransientError if another process trains in `out`.
    """
    check_start(task.name, options.start, out)
    if options.start and not (out / CHECKPOINT).exists():
        _load_start(task, Path(options.start))
    out.mkdir(parents=True, exist_ok=True)
    if rank_and_world()[0]:
        return _train(task, options, out, lambda text: None, writes=False)
    with sole_writer(out / "training.lock", out):
        return _train(task, options, out, report, writes=True)


def _train(task: TrainTask, options: TrainOptions, out: Path, report: Callable[[str], None], writes: bool) -> Path:
    optimizer = _optimizer(task.model, options)
    factor = _SCHEDULES[options.schedule]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(step, options.steps))
    ema = torch.optim.swa_utils.get_ema_multi_avg_fn(options.ema_decay)  # type: ignore[no-untyped-call]
    average = torch.optim.swa_utils.AveragedModel(task.model, multi_avg_fn=ema)
    state: dict[str, Any] = {"model": task.model, "average": average, "optimizer": optimizer, "schedule": schedule}
    start = options.start and os.path.abspath(options.start)  # which the working directory does not change
    run = {**asdict(replace(options, start=start)), **task.depends_on}
    first = restore(out, state, run, task.depends_on)
    if first:
        report(f"{task.name}: resuming at step {first} of {options.steps}")
    task.model.train()
    progress = Progress(task.name, first, options.steps, out if writes else None, report)
    memory = enough_memory(f"the training of the {task.name}", "give a smaller --batch")
    saved = time.monotonic()
    with closing(progress), memory, stop_requests() as asked:
        for step in range(first, options.steps):
            loss, interrupted = _step(task, options, step, optimizer, out, asked)
            schedule.step()
            average.update_parameters(task.model)
            done = step + 1
            progress.advance(done, loss)
            if done == first + _GRADIENT_CHECK:
                _report_untrained(task, report)
            finished = done == options.steps
            due = done % options.checkpoint_every == 0 or time.monotonic() - saved > _MAX_UNSAVED
            if writes and (due or finished or interrupted):
                save_checkpoint(task.name, out, state, run, done)
                saved = time.monotonic()
            if interrupted:
                raise KeyboardInterrupt
            if writes and (done % (5 * options.checkpoint_every) == 0 or finished):
                _report_metrics(task, average.module if options.ema_decay else task.model, out, done, progress)
    if writes:
        task.save(average.module if options.ema_decay else task.model, out / "model")
        make_weights_readable(out / "model")
        report(f"{task.name}: written to {out / 'model'}")
    return out / "model"


def _optimizer(model: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    if options.optimizer == "muon":
        return Muon(muon_groups(model, options.learning_rate, options.weight_decay))
    return torch.optim.AdamW(
        model.parameters(),
        lr=options.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=options.weight_decay,
        fused=True,
    )


def _step(
    task: TrainTask,
    options: TrainOptions,
    step: int,
    optimizer: torch.optim.Optimizer,
    out: Path,
    asked: Callable[[], bool],
) -> tuple[float, bool]:
    """Update the weights once; return the loss, and whether this or another process was asked to stop.

    Raises UserError before the update if the loss or a gradient is not finite.
    """
    rank, world = rank_and_world()
    # Dropout and noise differ between processes, as they do between the samples of one.
    torch.manual_seed(options.seed * 1_000_003 + step + rank * _SEEDS_PER_PROCESS)
    loss = task.loss(step, options.batch, options.seed)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    # All processes must stop after the same step: the others would wait for a missing one forever.
    stop = asked() or (world > 1 and rank == 0 and (out / STOP).exists())
    value = loss.detach().float().reshape(())
    shared = torch.stack([value, value.new_tensor(float(stop))])
    if world > 1:
        average_over_processes(task.model, shared, world)
    norm = torch.nn.utils.clip_grad_norm_(task.model.parameters(), 1.0)
    loss_value, stops, norm_value = torch.stack([*shared, norm.to(shared)]).tolist()
    if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
        problem = f"loss is {loss_value}" if not math.isfinite(loss_value) else f"gradient norm is {norm_value}"
        raise not_finite(task.name, f"its {problem} at step {step + 1}", out)
    optimizer.step()
    return float(loss_value), stops > 0 or (world == 1 and asked())


def _report_untrained(task: TrainTask, report: Callable[[str], None]) -> None:
    """Warn about weights without gradient. The loss can still fall: a miscompiled U-Net once ignored its text."""
    trained = [(name, weight) for name, weight in task.model.named_parameters() if weight.requires_grad]
    missing = [name for name, weight in trained if weight.grad is None or not weight.grad.any()]
    if missing:
        report(
            f"{task.name}: warning: {len(missing)} of {len(trained)} weights receive no gradient and are not trained, "
            f"such as {missing[0]}"
        )


def _load_start(task: TrainTask, folder: Path) -> None:
    try:
        task.load(folder)
    except (OSError, RuntimeError, ValueError) as error:
        raise cannot_start(task.name, folder, one_line(error).rstrip(".")) from error


def _one_cycle(step: int, steps: int) -> float:
    """Learning-rate factor: linear warmup over the first 6 %, then a cosine to 1 % of the peak."""
    warmup = max(1, round(0.06 * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _trapezoid(step: int, steps: int) -> float:
    """Learning-rate factor: linear warmup over at most 100 steps, constant, linear to zero over the last 40 %."""
    warmup = min(100, max(1, round(0.06 * steps)))
    return min(1.0, (step + 1) / warmup, (steps - step) / max(1.0, 0.4 * steps))


_SCHEDULES: dict[str, Callable[[int, int], float]] = {"cosine": _one_cycle, "trapezoid": _trapezoid}


def _report_metrics(task: TrainTask, model: nn.Module, out: Path, done: int, progress: Progress) -> None:
    was_training = model.training
    model.eval()
    with torch.no_grad():
        sheet = task.sample_sheet(model)
        sheet.save(out / f"samples-{done:06d}.png")
        progress.log_metrics(done, task.metrics(model), sheet)
    model.train(was_training)
