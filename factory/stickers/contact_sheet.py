"""A contact sheet: images of the embedded model, each next to the instances that the embedded detector finds."""

from collections.abc import Callable
from pathlib import Path

from factory.config.vocabulary import Vocabulary, caption
from factory.errors import UserError
from factory.stickers.embedded import open_detector, open_pipeline
from factory.stickers.evaluate_parts import classes_found, detect_all
from factory.stickers.sampling import Sampling, sample
from factory.stickers.train_detector import draw_instances
from factory.stickers.voc_folder import embedded_name
from factory.training.sheet import tile

_COLUMNS = 5


def contact_sheet(
    vocabulary: Vocabulary,
    num_images: int,
    objects: int,
    seed: int,
    out: Path,
    model: str,
    progress: Callable[[int], None],
) -> int:
    """Write the sheet to `out`. Returns the number of images in which every prompted class was found.

    UserError for a class that the embedded model does not know, and for fewer classes than objects per image.
    """
    names = list(dict.fromkeys(embedded_name(vocabulary, name) for name in vocabulary.names))
    if objects > len(names):
        raise UserError(f"{objects} classes per image require at least as many in --classes, got {', '.join(names)}.")
    prompted = []
    for k in range(num_images):
        # Grows with every pass over the names, so that each pass has different pairs; never a multiple of their number.
        step = 1 + k // len(names) % max(1, len(names) - 1)
        prompted.append(tuple(names[(k + j * step) % len(names)] for j in range(objects)))
    captions = [caption(chosen) for chosen in prompted]
    seeds = [seed * 1_000_003 + k for k in range(num_images)]
    pictures = sample(open_pipeline(model), captions, seeds, progress=progress, sampling=Sampling.of_model(model))
    found = detect_all(open_detector(), pictures)
    cells = [tile([[picture, draw_instances(picture, f)]]) for picture, f in zip(pictures, found, strict=True)]
    out.parent.mkdir(parents=True, exist_ok=True)
    tile([cells[first : first + _COLUMNS] for first in range(0, len(cells), _COLUMNS)]).save(out)
    return sum(set(chosen) <= classes_found(instances) for chosen, instances in zip(prompted, found, strict=True))
