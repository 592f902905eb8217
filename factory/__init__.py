"""factory turns class names into segmentation datasets with a text-to-image diffusion model.

The public API is loaded on first use, so that importing the package and `factory --help` stay fast.
"""

from typing import TYPE_CHECKING, Any

from factory.torchvision_guard import guard_against_torchvision

if TYPE_CHECKING:
    from factory.api import (
        Dataset,
        DatasetSample,
        LeaseHeldError,
        Recipe,
        RunFailedError,
        RunSummary,
        Snapshot,
        TransientError,
        UserError,
        decode_label_png,
        decode_rle,
        generate,
        load_recipe,
        make_recipe,
        open_dataset,
    )

__version__ = "0.2.0"

__all__ = [
    "Dataset",
    "DatasetSample",
    "LeaseHeldError",
    "Recipe",
    "RunFailedError",
    "RunSummary",
    "Snapshot",
    "TransientError",
    "UserError",
    "decode_label_png",
    "decode_rle",
    "generate",
    "load_recipe",
    "make_recipe",
    "open_dataset",
]

guard_against_torchvision()

if not TYPE_CHECKING:  # otherwise, type checkers would accept any name

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from factory import api

        return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
