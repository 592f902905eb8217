"""Checkpoints of a training run."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from factory.errors import UserError, one_line
from factory.files.atomic import replaced_atomically
from factory.files.torch_files import unreadable_because
from factory.training.options import CHECKPOINT


def save_checkpoint(name: str, out: Path, state: dict[str, Any], run: dict[str, Any], step: int) -> None:
    """Write the states of the training `name` after `step` steps, and the options `run` of the training.

    UserError if a weight is not finite; the previous checkpoint is then kept.
    """
    payload = {key: part.state_dict() for key, part in state.items()}
    for weight, value in (*payload["model"].items(), *payload["average"].items()):
        if value.is_floating_point() and not value.isfinite().all():
            raise not_finite(name, f"its weight {weight} is not finite after step {step}", out)
    # To a stream, because the error of a full disk names its cause only then.
    with replaced_atomically(out / CHECKPOINT) as partial, partial.open("wb") as stream:
        torch.save({"step": step, "options": run, **payload}, stream)


def restore(out: Path, state: dict[str, Any], run: dict[str, Any], depends_on: Mapping[str, str]) -> int:
    """Load the checkpoint in `out` into `state`; return its step, or 0 if there is none.

    UserError if it cannot be read, does not fit the model, or belongs to a run with other options.
    """
    path = out / CHECKPOINT
    if not path.exists():
        return 0
    try:
        saved = torch.load(path, map_location=run["device"], weights_only=True)
    except Exception as error:
        raise UserError(
            f"the checkpoint {path} cannot be read ({unreadable_because(error)}); move it away to start over."
        ) from error
    if not isinstance(saved, dict) or not {"step", "options", *state} <= saved.keys():
        raise UserError(f"{path} is not a checkpoint of this program; move it away to start over.")
    recorded = saved["options"]
    unknown = [key for key in depends_on if key not in recorded]
    if unknown:
        raise UserError(
            f"the checkpoint {path} does not record its {' and '.join(unknown)} because an earlier version wrote it; "
            f"train again with another --out."
        )
    if isinstance(recorded.get("start"), str):  # earlier versions recorded it as given
        recorded = {**recorded, "start": os.path.abspath(recorded["start"])}
    changed = [key for key, value in run.items() if recorded.get(key, value) != value and key != "device"]
    if changed:
        listed = ", ".join(f"{key} was {recorded[key]}, is {run[key]}" for key in changed)
        raise UserError(
            f"the checkpoint {path} belongs to another run ({listed}); use the same options or another --out."
        )
    try:
        for name, part in state.items():
            part.load_state_dict(saved[name])
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(
            f"the checkpoint {path} does not fit this model ({one_line(error)}), perhaps because another version wrote "
            f"it; train again with another --out."
        ) from error
    return int(saved["step"])


def saved_options(out: Path) -> Mapping[str, Any]:
    """The options of the checkpoint in `out`; empty if there is no readable checkpoint."""
    try:
        saved = torch.load(out / CHECKPOINT, map_location="cpu", mmap=True, weights_only=True)
        return dict(saved["options"])
    except Exception:  # `train` reports the problem
        return {}


def not_finite(name: str, problem: str, out: Path) -> UserError:
    """The error that ends the training `name` when a loss, gradient or weight is NaN or infinite."""
    exists = (out / CHECKPOINT).exists()
    state = f"the checkpoint {out / CHECKPOINT} is intact" if exists else "no checkpoint was written"
    return UserError(
        f"training of the {name} stopped: {problem}; {state}. Train with a smaller learning rate and another "
        f"--out, and check the data and start weights for NaN."
    )
