"""Protocol I: grounders measured on fresh generated images, against the detector's masks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from factory.config.plan import PlannedSample
from factory.config.prompts import Prompt, captioned
from factory.config.recipe import make_recipe
from factory.dataset.records import Grounded
from factory.detector.oracle import OracleGrounder
from factory.errors import UserError
from factory.files.strict_json import dumps
from factory.generation.pin import pin_recipe
from factory.generator.interface import Generated, Request
from factory.generator.pipeline import PipelineGenerator
from factory.grounder.attention import AttentionGrounder
from factory.grounder.folder import check_fits
from factory.grounder.iou import IoUMeter, label_map
from factory.grounder.trained import TrainedGrounder, open_grounders
from factory.training.devices import chosen_device

GROUPS = ("one seen", "one unseen", "two seen", "seen + unseen", "two unseen")
"""The columns of the paper's tables 1 and 2, by the classes that a prompt names."""
_SEED = 7_000_000
"""Apart from the seeds that sets are made with by default."""

Report = Callable[[str], None]


@dataclass(frozen=True)
class GrounderResult:
    """One cell: a method on a group of a split.

    `miou` pools a class's pixels over the group's images and averages over classes; `image_miou` averages the IoU of
    every object of every image. `images` are those in which the detector found all classes of the prompt, of `tried`.
    """

    method: str
    split: str
    group: str
    miou: float
    image_miou: float
    images: int
    tried: int


def protocol_1(
    folders: Sequence[str],
    classes: str,
    images: int,
    device: str = "auto",
    threads: int = 1,
    report: Report = print,
) -> list[GrounderResult]:
    """Every grounder ("FOLDER" or "NAME=FOLDER") on the split that it was trained for, beside the attention baseline.

    `images` are wanted for each group and split. Images are made, and true masks found, as in the grounder's oracle
    set: the same model, solver, steps and detector. Raises UserError where a grounder does not fit the vocabulary.
    """
    device = chosen_device(device)
    opened = open_grounders(folders, device, threads)
    results: list[GrounderResult] = []
    for split in dict.fromkeys(one.config.split for _, one in opened):
        group = {name: one for name, one in opened if one.config.split == split}
        results += _split(group, split, classes, images, device, threads, report)
    return results


def _split(
    grounders: dict[str, TrainedGrounder],
    split: str,
    classes: str,
    images: int,
    device: str,
    threads: int,
    report: Report,
) -> list[GrounderResult]:
    evaluation = SplitEvaluation(grounders, split, classes, device, threads)
    results = []
    for group in GROUPS:
        rows = _measure(evaluation, group, images)
        results += [GrounderResult(method, split, group, *row) for method, row in rows.items()]
        told = ", ".join(f"{row.method} {row.miou:.3f}" for row in results[-len(rows) :])
        report(f"split {split}, {group}: {told} ({results[-1].images} of {results[-1].tried} images)")
    return results


@dataclass(frozen=True)
class EvaluationBatch:
    """Images of one micro-batch: what each maker made, what the detector found, and which of them count.

    Of `made[m][k]` the k-th image is the same for every maker but for what was captured of it.
    """

    prompts: Sequence[Prompt]
    made: Sequence[Sequence[Generated]]
    truths: Sequence[Grounded]

    @property
    def complete(self) -> list[int]:
        """The places of the images in which every class of the prompt was found."""
        return [k for k, one in enumerate(self.truths) if len(one.instances) == len(self.prompts[k].classes)]


class SplitEvaluation:
    """Grounders of one split, with what makes their images and the detector that tells the truth.

    Images are made, and true masks found, as in the grounders' oracle set. `makers` are generators with the methods
    that read what they capture; the first is that of the attention baseline.
    """

    def __init__(
        self, grounders: dict[str, TrainedGrounder], split: str, classes: str, device: str, threads: int
    ) -> None:
        """UserError where grounders differ in what they read, and where `classes` is not their vocabulary."""
        first, *others = grounders.values()
        config = first.config
        if any(_reads(one) != _reads(first) for one in others):
            raise UserError(f"the grounders of split {split} read other models or timesteps; evaluate them one by one.")
        generator = {"model": config.model, **config.oracle.get("generator", {}), "threads": threads}
        masks = {**config.oracle.get("masks", {}), "source": "attention"}
        recipe = pin_recipe(
            make_recipe({"n": 1, "classes": classes, "batch": 8, "generator": generator, "masks": masks})
        )
        captured = {"capture": config.capture, "timesteps": (config.timestep,)}
        trained = recipe.model_copy(update={"masks": recipe.masks.model_copy(update=captured)})
        self._vocabulary, self._batch = recipe.vocabulary(), recipe.batch
        self._seen = list(config.classes_seen)
        self._unseen = [name for name in self._vocabulary.names if name not in config.classes_seen]
        if not self._unseen or set(self._seen) - set(self._vocabulary.names):
            raise UserError(
                f"a grounder of split {split} saw {', '.join(self._seen[:5])} ...; that is no split of {classes}. "
                f"Give the vocabulary of its oracle sets with --classes."
            )
        for name, one in grounders.items():
            check_fits(name, one.config, recipe.generator)
        from factory.detector.load import open_detector

        self.detector = open_detector(recipe, device)
        self._oracle = OracleGrounder(self.detector, recipe.masks)
        attention = AttentionGrounder(recipe.masks)
        needs = frozenset[str]().union(*(one.needs for one in grounders.values()))
        self.makers: list[tuple[PipelineGenerator, dict[str, Any]]] = [
            (PipelineGenerator(recipe, device, attention.needs), {"attention": attention}),
            (PipelineGenerator(trained, device, needs), {**grounders}),
        ]

    def batches(self, group: str, most: int) -> Iterator[EvaluationBatch]:
        """Up to `most` fresh images of a group of GROUPS, the same every time."""
        prompts = self._prompts(group, most)
        for start in range(0, len(prompts), self._batch):
            part = prompts[start : start + self._batch]
            asked = [prompt for _, prompt in part]
            requests = [Request(prompt, PlannedSample(index, prompt).seed(_SEED, 0)) for index, prompt in part]
            made = [maker.generate(requests) for maker, _ in self.makers]
            yield EvaluationBatch(asked, made, self._oracle.ground(made[0], asked))

    def _prompts(self, group: str, count: int) -> list[tuple[int, Prompt]]:
        """Numbered prompts of a group, classes in turn and partners at random."""
        number, seen, unseen = GROUPS.index(group), self._seen, self._unseen
        random = np.random.default_rng((number, len(seen)))
        pools = ((seen,), (unseen,), (seen, seen), (seen, unseen), (unseen, unseen))[number]
        rows = []
        for k in range(count):
            names = [pools[0][k % len(pools[0])]]
            for pool in pools[1:]:
                names.append(str(random.choice([name for name in pool if name not in names])))
            if random.random() < 0.5:
                names.reverse()
            rows.append((number * 1_000_000 + k, captioned(self._vocabulary, names)))
        return rows


def _measure(evaluation: SplitEvaluation, group: str, wanted: int) -> dict[str, tuple[float, float, int, int]]:
    """By method: mIoU, mIoU of images, images counted, images tried."""
    tallies: dict[str, IoUMeter] = {name: IoUMeter() for _, methods in evaluation.makers for name in methods}
    counted = tried = 0
    for batch in evaluation.batches(group, 3 * wanted):
        shape = batch.made[0][0].image.shape[:2]
        kept = batch.complete[: wanted - counted]
        for generated, (_, methods) in zip(batch.made, evaluation.makers, strict=True):
            for name, method in methods.items():
                predicted = method.ground(generated, batch.prompts)
                for k in kept:
                    classes = batch.prompts[k].classes
                    truth = label_map(batch.truths[k].disjoint(), classes, shape)
                    tallies[name].add(classes, label_map(predicted[k].disjoint(), classes, shape), truth)
        counted, tried = counted + len(kept), tried + len(batch.prompts)
        if counted >= wanted:
            break
    return {name: (tally.miou, tally.image_miou, counted, tried) for name, tally in tallies.items()}


def _reads(one: TrainedGrounder) -> tuple[object, ...]:
    config = one.config
    return config.model, config.revision, config.capture, config.timestep, config.classes_seen, config.oracle


def averaged(results: Sequence[GrounderResult]) -> Iterator[tuple[str, dict[str, float]]]:
    """(method, mIoU by group), averaged over splits, methods in the order in which they come first."""
    for method in dict.fromkeys(row.method for row in results):
        yield (
            method,
            {
                group: float(np.mean([row.miou for row in results if (row.method, row.group) == (method, group)]))
                for group in GROUPS
            },
        )


PAPER = {
    "voc": {"paper, with SD and Mask R-CNN": (90.3, 83.1, 79.1, 67.9, 55.7), "DAAM": (64.8, 62.9, 48.2, 49.2, 51.0)},
    "coco": {"paper, with SD and Mask R-CNN": (83.7, 73.2, 64.2, 56.3, 44.4), "DAAM": (61.7, 57.8, 49.8, 52.2, 40.8)},
}
"""The paper's figures, average of its three splits, mIoU in percent."""


def as_markdown(results: Sequence[GrounderResult], classes: str) -> str:
    """The table in the paper's form, percent, with the paper's own rows above."""
    lines = [f"| | {' | '.join(GROUPS)} |", "|---" * (len(GROUPS) + 1) + "|"]
    for name, row in PAPER.get(classes, {}).items():
        lines.append(f"| {name} | {' | '.join(f'{value:.1f}' for value in row)} |")
    for method, by_group in averaged(results):
        lines.append(f"| `{method}` | {' | '.join(f'{100 * by_group[group]:.1f}' for group in GROUPS)} |")
    splits = dict.fromkeys(row.split for row in results)
    counts = {group: sum(row.images for row in results if row.group == group) for group in GROUPS}
    methods = len({row.method for row in results})
    told = ", ".join(f"{count // methods} {group}" for group, count in counts.items())
    lines += ["", f"Average of split {', '.join(splits)}; images: {told}."]
    return "\n".join(lines)


def write_results(results: Sequence[GrounderResult], classes: str, out: Path) -> None:
    """`protocol-1.json` and `protocol-1.md` in a folder."""
    from dataclasses import asdict

    out.mkdir(parents=True, exist_ok=True)
    rows = {"classes": classes, "results": [asdict(row) for row in results], "average": dict(averaged(results))}
    (out / "protocol-1.json").write_text(dumps(rows, indent=1) + "\n")
    (out / "protocol-1.md").write_text(as_markdown(results, classes) + "\n")
