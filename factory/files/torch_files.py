"""Why a torch file cannot be read."""

import pickle
import re

from factory.errors import one_line

_OBJECTS = re.compile(r"Unsupported (global|class)|GLOBAL")


def unreadable_because(error: Exception) -> str:
    """The reason for an error of `torch.load` in a few words.

    The message of torch about an unsuitable file recommends `weights_only=False`, which can run code.
    """
    if "mmap can only be used" in str(error):
        return "it is not a file of tensors, or has the format of PyTorch before 1.6"
    if not isinstance(error, pickle.UnpicklingError):
        return one_line(error, 160)
    if _OBJECTS.search(str(error)):
        return "it contains objects other than tensors, which could run code"
    return "it is not a file of tensors"
