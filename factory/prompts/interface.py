"""The language model interface. Importing this module loads no model library."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Sampling:
    """Sampling settings of a language model; `max_tokens` limits the answer, including any reasoning."""

    temperature: float = 1.0
    top_p: float = 0.95
    max_tokens: int = 120


class LanguageModel(Protocol):
    """Answers instructions with text."""

    @property
    def identity(self) -> dict[str, str]:
        """Identifies the model and its content; written to the prompts file."""
        ...

    def load(self) -> None:
        """Load the model, before the first call of `answer`; raises UserError if it is unusable."""
        ...

    def answer(self, instructions: Sequence["Instruction"], seed: int) -> list[str]:
        """One answer per instruction, in order. `seed` has 31 bits."""
        ...


@dataclass(frozen=True)
class Instruction:
    """An instruction: `chat` for models that follow instructions, `completion` for models that continue a text."""

    chat: str
    completion: str
