"""What pipelines write around a prompt before a language model reads it: its chat template.

The template counts towards the number of tokens that the encoder reads, so a prompt has less room than that.
"""

from collections.abc import Callable
from typing import Any

from factory.errors import UserError, one_line

Template = Callable[[Any], tuple[str, str]]
"""The text before and after a prompt, by the tokenizer. As in `_get_qwen3_prompt_embeds` and others of diffusers."""

_PROBE = "a photograph of a dog"


def without_thinking(tokenizer: Any) -> tuple[str, str]:
    """FLUX.2 klein."""
    return _around(tokenizer, [_turn("user", _PROBE)], add_generation_prompt=True, enable_thinking=False)


def with_thinking(tokenizer: Any) -> tuple[str, str]:
    """Z-Image."""
    return _around(tokenizer, [_turn("user", _PROBE)], add_generation_prompt=True, enable_thinking=True)


def with_system_message(tokenizer: Any) -> tuple[str, str]:
    """FLUX.2 dev."""
    from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE

    turns = [
        _turn(role, [{"type": "text", "text": text}]) for role, text in (("system", SYSTEM_MESSAGE), ("user", _PROBE))
    ]
    return _around(tokenizer, turns, add_generation_prompt=False)


def _turn(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


def _around(tokenizer: Any, turns: list[dict[str, object]], **options: bool) -> tuple[str, str]:
    """What the chat template of a tokenizer puts before and after the probe. UserError if it has none or it fails."""
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False, **options))
    except Exception as error:  # jinja2 raises many types of errors
        raise UserError(
            f"the chat template of the tokenizer in {tokenizer.name_or_path} cannot be used ({one_line(error, 80)}); "
            f"download the model again."
        ) from error
    before, probe, after = text.rpartition(_PROBE)
    return (before, after) if probe else ("", "")
