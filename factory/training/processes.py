"""The processes of one training: their number, averages of their gradients, and means over whole batches."""

import torch
from torch import Tensor, nn


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of processes that train together; (0, 1) for a single process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def average_over_processes(model: nn.Module, shared: Tensor, world: int) -> None:
    """Average gradients, running statistics and `shared` over the processes that train together."""
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    for value in [*gradients, *(buffer for buffer in model.buffers() if buffer.is_floating_point()), shared]:
        torch.distributed.all_reduce(value)
        value /= world


def mean_over_batch(total: Tensor, count: Tensor) -> Tensor:
    """`total / count` (scalars), for a loss that sums over the `count` pixels or objects of this process.

    The average of the results over the processes is the sum of all totals divided by the sum of all counts, as if one
    process had the whole batch; an average of plain means would depend on the distribution of the pixels. Every process
    must call this function equally often. If both are 0, the result is 0.
    """
    _, world = rank_and_world()
    if world == 1:
        return total / count.clamp_min(1)
    whole_count = count.detach().clone()
    torch.distributed.all_reduce(whole_count)
    return total * world / whole_count.clamp_min(1)
