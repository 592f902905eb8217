"""The language model interface. Importing this module loads no model library."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Sampling:
    """How a language model draws its text: `max_tokens` limits the answer, including any reasoning."""

    temperature: float = 1.0
    top_p: float = 0.95
    max_tokens: int = 120


class LanguageModel(Protocol):
    """Answers instructions with text."""

    @property
    def identity(self) -> dict[str, str]:
        """What identifies the model and its content; it is written to the prompts file."""
        ...

    def load(self) -> None:
        """Load the model, before the first call of `answer`; raises UserError if it is unusable."""
        ...

    def answer(self, instructions: Sequence["Instruction"], seed: int) -> list[str]:
        """One answer per instruction, in order. `seed` has 31 bits."""
        ...


@dataclass(frozen=True)
class Instruction:
    """What to ask: `chat` for models that follow instructions, `completion` for those that only continue a text."""

    chat: str
    completion: str
