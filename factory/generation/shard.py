"""Produce one shard: a pure function of the plan and the models, whoever runs it and however often."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace

from factory.config.plan import PlannedSample, PlannedShard
from factory.config.prompts import Prompt
from factory.config.recipe import Recipe
from factory.dataset.encode import EncodedSample, encode_sample
from factory.dataset.receipts import Tally
from factory.dataset.records import Grounded, Rejection, Sample, Verdict, provenance
from factory.generation.components import Components
from factory.generation.filters import Filters
from factory.generator.interface import Request


@dataclass(frozen=True)
class Pending:
    """A sample that is not accepted yet, with what was tried."""

    planned: PlannedSample
    rejections: tuple[Rejection, ...] = ()


@dataclass(frozen=True)
class Produced:
    """A shard's samples on their way through the encoder, and what it took."""

    samples: list["Future[EncodedSample]"]
    tally: Tally
    seconds: dict[str, float]


Progress = Callable[[int, Sequence[str]], None]
"""Told after each micro-batch: how many samples were accepted, and the reasons of those that were not."""


def produce(
    shard: PlannedShard,
    recipe: Recipe,
    components: Components,
    encoder: Executor,
    progress: Progress = lambda accepted, reasons: None,
) -> Produced:
    """Try the shard's samples in rounds; in each, those still without an accepted image, in micro-batches, in order."""
    filters, clock = Filters(recipe.filters, recipe.format), _Clock()
    about, vocabulary = provenance(recipe), recipe.vocabulary()
    encoded: dict[int, Future[EncodedSample]] = {}
    rejected: Counter[str] = Counter()
    pending, attempts = [Pending(planned) for planned in shard.samples], 0
    for attempt in range(recipe.attempts):
        left: list[Pending] = []
        for batch in _cut(pending, recipe.batch):
            attempts += len(batch)
            verdicts = _try(batch, attempt, recipe, components, filters, clock)
            for one, sample, verdict in verdicts:
                if verdict.reason is None:
                    job = encoder.submit(encode_sample, sample, vocabulary, about, recipe.jpeg_quality)
                    encoded[one.planned.index] = job
                else:
                    left.append(_rejected(one, sample, verdict.reason))
            reasons = [verdict.reason for _, _, verdict in verdicts if verdict.reason is not None]
            rejected.update(reasons)
            progress(len(batch) - len(reasons), reasons)
        pending = left
        if not pending:
            break
    short = tuple(one.planned.index for one in pending)
    samples = [encoded[index] for index in sorted(encoded)]
    return Produced(samples, Tally(attempts, rejected, short), clock.seconds)


def _try(
    batch: Sequence[Pending], attempt: int, recipe: Recipe, components: Components, filters: Filters, clock: "_Clock"
) -> list[tuple[Pending, Sample, Verdict]]:
    """Generate, ground and judge one micro-batch."""
    seeds = [one.planned.seed(recipe.seed, attempt) for one in batch]
    prompts = [one.planned.prompt for one in batch]
    with clock("generate"):
        requests = [
            Request(one.planned.prompt, seed, one.planned.index) for one, seed in zip(batch, seeds, strict=True)
        ]
        generated = components.generator.generate(requests)
    with clock("ground"):
        grounded = components.grounder.ground(generated, prompts)
    images = [one.image for one in generated]
    with clock("judge"):
        opinions = components.judge.detect(images) if components.judge else [None] * len(images)
    results = []
    with clock("filter"):
        for place, one in enumerate(batch):
            made, raw, written = generated[place], grounded[place], grounded[place].disjoint()
            measured = written if recipe.format > 1 else _measured_by_format_1(recipe, prompts[place], raw, written)
            judged = prompts[place]
            if recipe.oracle is not None:
                judged = judged.only({instance.class_name for instance in measured.instances})
            verdict = filters.judge(made.image, judged, measured, opinions[place], raw)
            sample = Sample(
                planned=one.planned,
                attempt=attempt,
                seed=seeds[place],
                image=made.image,
                grounded=written,
                scores={**verdict.scores, **made.measured},
                rejections=one.rejections,
                latent=made.latent if recipe.oracle is not None else None,
                timestep=made.timestep,
            )
            results.append((one, sample, verdict))
    return results


def _measured_by_format_1(recipe: Recipe, prompt: Prompt, raw: Grounded, written: Grounded) -> Grounded:
    """The masks that filters of format 1 measured: those that were found, before overlaps were removed.

    A class of the prompt that lost all of its pixels to another was accepted and then missing. Such a shard was never
    sound, so it is judged as today: a dataset of format 1 can be repaired, and its sound shards keep their bytes.
    """
    left = {instance.class_name for instance in written.instances}
    lost = {instance.class_name for instance in raw.instances} - left
    return written if recipe.oracle is None and lost & set(prompt.classes) else raw


def _rejected(one: Pending, sample: Sample, reason: str) -> Pending:
    return replace(one, rejections=(*one.rejections, Rejection(sample.attempt, sample.seed, reason)))


def _cut(pending: Sequence[Pending], size: int) -> Iterator[Sequence[Pending]]:
    return (pending[start : start + size] for start in range(0, len(pending), size))


class _Clock:
    """Adds up seconds by the name of the step: `with clock("generate"): ...`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running: list[tuple[str, float]] = []

    def __call__(self, name: str) -> "_Clock":
        self._running.append((name, time.perf_counter()))
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        name, start = self._running.pop()
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 4)
