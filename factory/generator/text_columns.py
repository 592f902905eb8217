"""Maps tokens of a text encoder to columns of the text states that the denoiser reads.

Pipelines drop padding or parts of a template in between.
"""

from collections.abc import Callable, Sequence
from typing import Any

Columns = Callable[[Sequence[bool], Any], list[int | None]]
"""The column of each of the encoder's tokens, None where it is left out.

The arguments are whether each token is text (not padding), and the pipeline.
"""

_SANA_LAST = 299


def in_place(is_text: Sequence[bool], pipeline: Any) -> list[int | None]:
    """All states are kept."""
    return list(range(len(is_text)))


def without_padding(is_text: Sequence[bool], pipeline: Any) -> list[int | None]:
    """Padding is removed."""
    columns = [sum(is_text[:position]) for position in range(len(is_text))]
    return [column if kept else None for column, kept in zip(columns, is_text, strict=True)]


def after_template(is_text: Sequence[bool], pipeline: Any) -> list[int | None]:
    """Padding and the start of the template are removed (Qwen-Image)."""
    dropped = int(pipeline.prompt_template_encode_start_idx)
    columns = without_padding(is_text, pipeline)
    return [column - dropped if column is not None and column >= dropped else None for column in columns]


def first_and_last(is_text: Sequence[bool], pipeline: Any) -> list[int | None]:
    """The first state and the last 299 are kept (Sana)."""
    skipped = max(0, len(is_text) - _SANA_LAST - 1)
    return [0 if k == 0 else (k - skipped if k > skipped else None) for k in range(len(is_text))]
