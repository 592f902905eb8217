"""Writes a prompts file: requests lines from a language model, checks them, and requests rejected ones again."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from factory.config.class_balance import ClassSequence
from factory.config.prompts import Prompt
from factory.config.vocabulary import Vocabulary
from factory.prompts.check import LineCheck
from factory.prompts.file import PromptsFile
from factory.prompts.instructions import instruction, prompt_in
from factory.prompts.interface import LanguageModel


@dataclass(frozen=True)
class Job:
    """The prompts to write: prompt k shows the classes `names[i]` for i in `sequence.at(k)`."""

    vocabulary: Vocabulary
    names: Sequence[str]
    sequence: ClassSequence
    n: int
    seed: int
    batch: int
    attempts: int


def write_prompts(
    job: Job, file: PromptsFile, check: LineCheck, model: LanguageModel, progress: Callable[[int], None]
) -> None:
    """Write the missing batches, then rename the file. The model is loaded only if batches are missing."""
    for text in file.progress.texts:
        check.accept(text)
    starts = range(file.progress.batches * job.batch, job.n, job.batch)
    if starts:
        model.load()
    for start in starts:
        indices = range(start, min(start + job.batch, job.n))
        accepted, rejected = _write_batch(job, indices, model, check)
        file.append([accepted[index] for index in indices if index in accepted], rejected, len(indices) - len(accepted))
        progress(indices.stop)
    file.finish()


def _write_batch(
    job: Job, indices: Sequence[int], model: LanguageModel, check: LineCheck
) -> tuple[dict[int, Prompt], Counter[str]]:
    """(accepted prompts by index, rejected lines by reason) of some consecutive prompts.

    Each round requests a full batch of answers, several for each missing prompt, because a model takes about as long
    for a batch as for a single answer.
    """
    classes = {index: [job.vocabulary.resolve(job.names[item]) for item in job.sequence.at(index)] for index in indices}
    accepted: dict[int, Prompt] = {}
    rejected: Counter[str] = Counter()
    for attempt in range(job.attempts):
        missing = [index for index in indices if index not in accepted]
        if not missing:
            break
        requested = list(islice(cycle(missing), len(indices)))
        key = f"{job.seed}/prompts/{indices[0]}/{attempt}"
        instructions = [
            instruction([entry.display for entry in classes[index]], f"{key}/{position}")
            for position, index in enumerate(requested)
        ]
        for index, answer in zip(requested, model.answer(instructions, _seed(key)), strict=True):
            if index in accepted:
                continue
            result = check.check(prompt_in(answer), [entry.name for entry in classes[index]])
            if isinstance(result, str):
                rejected[result] += 1
            else:
                accepted[index] = result
                check.accept(result.text)
    return accepted, rejected


def _seed(key: str) -> int:
    """31 bits, which every library accepts."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) >> 1
