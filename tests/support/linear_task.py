"""A tiny model that is trained by the same loop as the real ones."""

import math
import os
import shutil
import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from factory.errors import UserError
from factory.grounder.loss import binary_loss, competing_loss
from factory.training.loop import STOP, train
from factory.training.options import CHECKPOINT, TrainOptions

OPTIONS = TrainOptions(steps=40, batch=4, learning_rate=1e-2, ema_decay=0.9, checkpoint_every=10)


class LinearTask:
    """`nan_at` is the step at which the loss is NaN, `stop_at` the one in which `stop` is asked for."""

    name = "linear"

    def __init__(self, nan_at: int | None = None, stop_at: int | None = None, stop: Path = Path()) -> None:
        self.depends_on = {"data": "linear"}
        torch.manual_seed(0)
        self.model = nn.Linear(3, 1)
        self.nan_at, self.stop_at, self.stop = nan_at, stop_at, stop

    def loss(self, step: int, batch: int, seed: int) -> Tensor:
        if step == self.stop_at:
            self.stop.touch()
        inputs = self.drawn = torch.randn(batch, 3)
        loss = (self.model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        return loss * math.nan if step == self.nan_at else loss

    def sample_sheet(self, model: nn.Module) -> Image.Image:
        return Image.new("RGB", (8, 8))

    def metrics(self, model: nn.Module) -> dict[str, float]:
        return {"nothing": math.nan}

    def save(self, model: nn.Module, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        torch.save(model.state_dict(), folder / "weights.pt")

    def load(self, folder: Path) -> None:
        self.model.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))


def gradients_of_part(rank: int, world: int) -> Tensor:
    """The gradients of a scale of the logits of both losses, for the images of one process.

    Most pixels of the images of the first of two processes are ignored, and it has half as many objects.
    """
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(4, 2, 8, 8, generator=generator), torch.zeros(4, 8, 8, dtype=torch.uint8)
    labels[:, :4, :4], labels[1::2, :, 4:], labels[0::2, 1:] = 1, 2, 255
    found = torch.tensor([[True, False], [True, True]] * 2)
    scale, part = torch.ones(1, requires_grad=True), slice(rank, None, world)
    losses = [loss(scale * logits[part], labels[part], found[part]) for loss in (competing_loss, binary_loss)]
    return torch.cat([torch.autograd.grad(loss, scale)[0] for loss in losses])


def main() -> None:
    """One of two processes that train together: to the end, to a NaN of the second one, with a stop and a resume."""
    rank, out = int(sys.argv[1]), Path(sys.argv[2])
    torch.distributed.init_process_group("gloo", f"file://{out / 'rendezvous'}", rank=rank, world_size=2)
    torch.save(gradients_of_part(rank, 2), out / f"gradients-{rank}.pt")
    task = LinearTask()
    train(task, OPTIONS, out / "whole", print)
    torch.save(task.drawn, out / f"drawn-{rank}.pt")
    try:
        train(LinearTask(25 if rank else None), OPTIONS, out / "broken", lambda text: None)
    except UserError as error:
        print(error, file=sys.stderr)
    stop = out / "stopped" / STOP
    try:
        train(LinearTask(stop_at=26 if rank == 0 else None, stop=stop), OPTIONS, out / "stopped", lambda text: None)
    except KeyboardInterrupt:
        if rank == 0:
            (out / "stopped" / CHECKPOINT).rename(out / "stopped" / "kept.pt")
            shutil.copy(out / "stopped" / "kept.pt", out / "stopped" / CHECKPOINT)
            stop.unlink()
        torch.distributed.barrier()
        train(LinearTask(), OPTIONS, out / "stopped", lambda text: None)
    torch.distributed.barrier()  # the first process writes the model while the other one would already exit
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # the threads of gloo can abort a process that ends in the usual way on a busy machine


if __name__ == "__main__":
    main()
