"""The training loop: checkpoints, exact resume, progress, figures, log, TensorBoard and sample sheets."""

import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from factory.errors import UserError
from factory.training.devices import check_device
from factory.training.muon import Muon, muon_groups
from factory.training.progress import Progress

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class TrainOptions:
    """What a training run is made of; a checkpoint of other options is refused."""

    steps: int
    batch: int
    learning_rate: float
    seed: int = 0
    device: str = "cpu"
    ema_decay: float = 0.0
    weight_decay: float = 0.01
    checkpoint_every: int = 200
    start: str | None = None
    """Folder of a finished model whose weights the run starts with."""
    optimizer: str = "adamw"
    """`adamw`, or `muon`: see `factory/training/muon.py`."""
    schedule: str = "cosine"
    """`cosine` (one cycle), or `trapezoid`: constant, then linear to zero over the last 40 %."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise UserError(
                f"A training needs at least one step and one sample a step; got {self.steps} steps of {self.batch}."
            )
        if not (math.isfinite(self.learning_rate) and self.learning_rate >= 0):
            raise UserError(
                f"The learning rate is {self.learning_rate}; give a number that is not negative, such as 0.001."
            )
        check_device(self.device)


class TrainTask(Protocol):
    """What differs between the models."""

    name: str
    model: nn.Module
    """Everything that is trained, as one module."""

    @property
    def depends_on(self) -> Mapping[str, str]:
        """What a run depends on besides its options, as its data and its network; a checkpoint of others is refused."""
        ...

    def loss(self, step: int, batch: int, seed: int) -> Tensor:
        """The loss of one step's batch; the batch is a pure function of the arguments."""
        ...

    def sample_sheet(self, model: nn.Module) -> Image.Image:
        """A picture that shows what `model` can do so far."""
        ...

    def figures(self, model: nn.Module) -> dict[str, float]:
        """What `model` is worth so far, by name; may be empty."""
        ...

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the finished model."""
        ...

    def load(self, folder: Path) -> None:
        """Begin with the weights that `save` wrote to `folder`."""
        ...


def train(task: TrainTask, options: TrainOptions, out: Path, report: Callable[[str], None] = print) -> Path:
    """Train to `options.steps`, from the last checkpoint in `out` if there is one; return the model's folder.

    Killed at any moment, the same call goes on from the last checkpoint: batches and noise depend on the step
    alone, so only the work since then is repeated. Of several processes only the first writes and reports. Raises
    UserError where `out` holds another run, and where the loss or a weight is no number any more: the last checkpoint
    is from before.
    """
    out.mkdir(parents=True, exist_ok=True)
    if options.start and not (out / CHECKPOINT).exists():
        _begin_with(task, Path(options.start))
    writes = rank_and_world()[0] == 0
    report = report if writes else _silent
    optimizer = _optimizer(task.model, options)
    factor = _SCHEDULES[options.schedule]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(step, options.steps))
    moving = torch.optim.swa_utils.get_ema_multi_avg_fn(options.ema_decay)  # type: ignore[no-untyped-call]
    average = torch.optim.swa_utils.AveragedModel(task.model, multi_avg_fn=moving)
    state: dict[str, Any] = {"model": task.model, "average": average, "optimizer": optimizer, "schedule": schedule}
    run = {**asdict(options), **task.depends_on}
    first = _restore(out, state, run, task.depends_on)
    if first:
        report(f"{task.name}: resuming at step {first} of {options.steps}")
    task.model.train()
    progress = Progress(task.name, first, options.steps, out if writes else None, report)
    with closing(progress), _interrupt_between_steps() as interrupted:
        for step in range(first, options.steps):
            loss = _step(task, options, step, optimizer, out)
            schedule.step()
            average.update_parameters(task.model)
            done = step + 1
            progress.advance(done, loss)
            finished = done == options.steps
            if writes and (done % options.checkpoint_every == 0 or finished or interrupted()):
                _checkpoint(task, out, state, run, done)
            if interrupted():
                raise KeyboardInterrupt
            if writes and (done % (5 * options.checkpoint_every) == 0 or finished):
                _show(task, average.module if options.ema_decay else task.model, out, done, progress)
    if writes:
        task.save(average.module if options.ema_decay else task.model, out / "model")
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


def _step(task: TrainTask, options: TrainOptions, step: int, optimizer: torch.optim.Optimizer, out: Path) -> float:
    """One update of the weights; returns the loss. UserError, before the update, where loss or gradient is NaN."""
    torch.manual_seed(options.seed * 1_000_003 + step)
    loss = task.loss(step, options.batch, options.seed)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    value = loss.detach().float().reshape(1)
    _share(task.model, value)
    norm = torch.nn.utils.clip_grad_norm_(task.model.parameters(), 1.0)
    told, length = torch.stack([value[0], norm.to(value)]).tolist()
    if not (math.isfinite(told) and math.isfinite(length)):
        what = f"loss is {told}" if not math.isfinite(told) else f"gradient's norm is {length}"
        raise _not_a_number(task, f"its {what} at step {step + 1}", out)
    optimizer.step()
    return float(told)


def _not_a_number(task: TrainTask, what: str, out: Path) -> UserError:
    kept = f"the checkpoint {out / CHECKPOINT} is from before" if (out / CHECKPOINT).exists() else "nothing is written"
    return UserError(
        f"The training of the {task.name} was stopped: {what}; {kept}. Train in another --out with a smaller learning "
        f"rate, and look for broken values in data or start weights."
    )


def _silent(text: str) -> None:
    """What processes behind the first report."""


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many train together; (0, 1) where it trains alone."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _share(model: nn.Module, loss: Tensor) -> None:
    """The mean of gradients, running statistics and the loss over the processes that train together."""
    world = rank_and_world()[1]
    if world == 1:
        return
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    for value in [*gradients, *(buffer for buffer in model.buffers() if buffer.is_floating_point()), loss]:
        torch.distributed.all_reduce(value)
        value /= world


@contextmanager
def _interrupt_between_steps() -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C wait for the end of a step, so that the checkpoint is whole; a second strikes at once."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


def _begin_with(task: TrainTask, folder: Path) -> None:
    try:
        task.load(folder)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{folder} holds no weights that the {task.name} can begin with ({error}); name the folder of a model that "
            "this command finished, or leave out --start."
        ) from error


def _one_cycle(step: int, steps: int) -> float:
    """Learning-rate factor: a linear rise over the first 6 %, then a cosine to 1 % of the peak."""
    rise = max(1, round(0.06 * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def _trapezoid(step: int, steps: int) -> float:
    """Learning-rate factor: a linear rise over at most 100 steps, constant, linear to zero over the last 40 %."""
    rise = min(100, max(1, round(0.06 * steps)))
    return min(1.0, (step + 1) / rise, (steps - step) / max(1.0, 0.4 * steps))


_SCHEDULES: dict[str, Callable[[int, int], float]] = {"cosine": _one_cycle, "trapezoid": _trapezoid}


def _show(task: TrainTask, model: nn.Module, out: Path, done: int, progress: Progress) -> None:
    was_training = model.training
    model.eval()
    with torch.no_grad():
        sheet = task.sample_sheet(model)
        sheet.save(out / f"samples-{done:06d}.png")
        progress.tell(done, task.figures(model), sheet)
    model.train(was_training)


def _checkpoint(task: TrainTask, out: Path, state: dict[str, Any], run: dict[str, Any], step: int) -> None:
    partial = out / f"{CHECKPOINT}.partial"
    payload = {name: part.state_dict() for name, part in state.items()}
    for name, value in (*payload["model"].items(), *payload["average"].items()):
        if value.is_floating_point() and not value.isfinite().all():
            raise _not_a_number(task, f"its weight {name} is no finite number after step {step}", out)
    torch.save({"step": step, "options": run, **payload}, partial)
    partial.replace(out / CHECKPOINT)


def _restore(out: Path, state: dict[str, Any], run: dict[str, Any], depends_on: Mapping[str, str]) -> int:
    path = out / CHECKPOINT
    if not path.exists():
        return 0
    try:
        saved = torch.load(path, map_location=run["device"], weights_only=True)
    except Exception as error:
        raise UserError(f"The checkpoint {path} cannot be read ({error}); move it away to start afresh.") from error
    before = saved["options"]
    unknown = [key for key in depends_on if key not in before]
    if unknown:
        raise UserError(
            f"The checkpoint {path} does not tell its {' and '.join(unknown)}, as an earlier version wrote it; train "
            f"again in another --out."
        )
    changed = [key for key, value in run.items() if before.get(key, value) != value and key != "device"]
    if changed:
        listed = ", ".join(f"{key} was {before[key]}, is {run[key]}" for key in changed)
        raise UserError(f"The checkpoint {path} is of another run ({listed}); give its options or another --out.")
    for name, part in state.items():
        part.load_state_dict(saved[name])
    return int(saved["step"])


def saved_options(out: Path) -> Mapping[str, Any]:
    """The options of the checkpoint in `out`; none where there is no checkpoint that can be read."""
    try:
        saved = torch.load(out / CHECKPOINT, map_location="cpu", mmap=True, weights_only=True)
        return dict(saved["options"])
    except Exception:  # `train` says what is wrong with it
        return {}


def tile(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Pictures of one size as a sheet."""
    width, height = rows[0][0].size
    sheet = Image.new("RGB", (width * max(map(len, rows)), height * len(rows)))
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            sheet.paste(picture, (c * width, r * height))
    return sheet
