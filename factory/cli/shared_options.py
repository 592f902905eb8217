"""Options that several commands share, as annotated types: one spelling and one help text for each."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from factory.config.guidance import GuidanceSchedule

MAX_SEED = 2**32 - 1
"""The largest seed of trainings and renderings; a larger one overflows when it is combined with a step."""


def _batch(text: str | None) -> str | None:
    from factory.config.batch_size import read_batch

    if text is not None:
        try:
            read_batch(text)
        except ValueError as error:
            raise typer.BadParameter(f"{error}, got {text}") from error
    return text


def _device(text: str) -> str:
    from factory.errors import UserError
    from factory.training.devices import check_device_name

    try:
        check_device_name(text)
    except UserError as error:
        raise typer.BadParameter(str(error)) from error
    return text


# Datasets: every command reads one as the argument DATASET, and writes to --out.
Dataset = Annotated[str, typer.Argument(metavar="DATASET", help="Folder or URL (s3://, gs://, az://) of a dataset.")]
DatasetOut = Annotated[
    str,
    typer.Option(
        "--shards",
        "--out",
        help="Folder or URL (s3://, gs://, az://) to write the dataset to; an unfinished dataset is resumed.",
    ),
]
Extend = Annotated[bool, typer.Option("--extend", help="Extend an existing dataset to --n samples.")]
Force = Annotated[bool, typer.Option("--force", help="Take over from another driver that is working on the dataset.")]

# What to generate.
Classes = Annotated[
    str | None,
    typer.Option(help='coco (default), voc, a file with one class per line, or names: dog,cat,"traffic light".'),
]
Count = Annotated[
    int | None,
    typer.Option(
        "--n",
        min=1,
        max=10**9,
        help="Number of accepted samples; required unless the recipe file or the dataset to resume contains it.",
    ),
]
_OBJECTS = 'Shares of images by number of objects, up to six, as in "1:0.5,2:0.5"; by default, '
Objects = Annotated[str | None, typer.Option(help=_OBJECTS + "every image has one object.")]
OracleObjects = Annotated[
    str | None, typer.Option("--objects", help=_OBJECTS + "half of the images have one object and half have two.")
]
Cooccurrence = Annotated[
    str | None,
    typer.Option(
        help="How often pairs of classes occur together: coco, as in the images of COCO, or a CSV file with the "
        "columns class,class,weight."
    ),
]
Prompts = Annotated[
    Path | None,
    typer.Option(help="Prompts file; each line has a text, a tab and a comma-separated list of classes."),
]
PromptStyle = Annotated[
    Literal["simple", "rich"] | None,
    typer.Option(
        help="simple (default): a caption of the class names; rich: with attributes, places, light, weather and camera."
    ),
]
Seed = Annotated[int | None, typer.Option(min=0, max=2**63 - 1, help="Seed of the dataset; 0 by default.")]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="Recipe file; options override its values.")]

# Models.
Model = Annotated[
    str | None,
    typer.Option(
        help="stickers (default) or stickers-turbo (embedded), a diffusers folder, a hub id, or a checkpoint file."
    ),
]
Lora = Annotated[
    str | None,
    typer.Option(
        help="LoRA for the model: a .safetensors file, a folder with one, or OWNER/NAME or OWNER/NAME/FILE on the hub."
    ),
]
Masks = Annotated[
    str | None,
    typer.Option(
        help="attention, detector, stickers or stickers-turbo (grounders of the embedded models), or the folder of a "
        "trained grounder; by default the grounder of an embedded model, and attention for other models."
    ),
]
Detector = Annotated[
    str | None,
    typer.Option(
        help="stickers (embedded, default), a folder or hub id, or KIND:MODEL as in sam3:facebook/sam3; "
        "`factory models` lists the kinds."
    ),
]
SolverSteps = Annotated[
    int | None,
    typer.Option(
        "--solver-steps",
        "--steps",
        min=1,
        max=1000,
        help="Sampling steps per image; by default those of the model card.",
    ),
]
Guidance = Annotated[
    float | None,
    typer.Option(min=0, max=100, help="Scale of classifier-free guidance; by default that of the model card."),
]
GuidanceScales = Annotated[
    GuidanceSchedule | None,
    typer.Option(
        "--guidance-schedule",
        help="constant, or linear for more varied images: the scale increases from step to step (Stable Diffusion 1, 2 "
        "and XL). By default linear for stickers without --guidance, else constant.",
    ),
]
NoiseLevel = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Noise level at which features are read, above 0 and below 1; by default that of the model family.",
    ),
]
Dtype = Annotated[
    Literal["float32", "tf32", "float16", "bfloat16"] | None,
    typer.Option(
        help="Precision; bfloat16 by default on GPUs and on a local CPU with bfloat16 instructions, else float32; "
        "tf32 is float32 with TF32 matrix products on GPUs."
    ),
]
Batch = Annotated[
    str | None,
    typer.Option(
        callback=_batch,
        help="Images per batch, 8 by default; auto measures how many fit into GPU memory.",
    ),
]

# Filters and shards.
MinConfidence = Annotated[
    float | None, typer.Option(min=0, max=1, help="Reject samples with a mask score below this; off by default.")
]
Attempts = Annotated[
    int | None,
    typer.Option(
        min=1, max=1000, help="Maximum number of seeds to try for a sample before it is skipped; 16 by default."
    ),
]
ShardSize = Annotated[int | None, typer.Option(min=1, max=100_000, help="Samples per shard; 100 by default.")]

# The engine.
Workers = Annotated[
    int | None, typer.Option(min=1, max=4096, help="Number of generating workers; by default, as many as fit.")
]
GpusPerWorker = Annotated[
    float | None, typer.Option(min=0, max=16, help="GPUs per worker, which may be a fraction; 0 uses the CPU.")
]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster to join: host:port, ray://host:port or auto; local by default.")
]
Grace = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=86_400,
        help="Seconds that shards in progress may take to finish after SIGTERM or Ctrl-C; 20 by default.",
    ),
]

# Training and evaluation.
Device = Annotated[
    str, typer.Option(callback=_device, help="cpu, cuda, cuda:N, or auto, which uses a GPU if there is one.")
]
Devices = Annotated[int, typer.Option(min=1, help="Number of devices to train on in parallel, with Ray Train.")]
TrainAddress = Annotated[
    str | None, typer.Option(help="Ray cluster to use with several devices: host:port or auto; local by default.")
]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0 uses all cores.")]
Annotations = Annotated[
    Path | None, typer.Option(help="COCO annotation file (instances_*.json), if --real is a folder of COCO images.")
]
SegmenterClasses = Annotated[
    str | None,
    typer.Option(help="voc, coco, a file with one class per line, or names; by default those of the segmenter."),
]
Table = Annotated[
    Path | None, typer.Option(help="Markdown file in which to replace the table between its marker comments.")
]

# Output.
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
