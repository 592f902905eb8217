"""`factory prompts`: a prompts file, written by a language model."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from factory.cli.messages import to_stdout
from factory.cli.shared_options import AsJson, Classes, Cooccurrence, Device, Objects
from factory.errors import counted, tally
from factory.files.strict_json import dumps

if TYPE_CHECKING:
    from factory.config.recipe import Recipe
    from factory.prompts.file import PromptsFile
    from factory.prompts.interface import LanguageModel, Sampling


def prompts(
    out: Annotated[Path, typer.Option(help="Prompts file to write; an unfinished one is resumed.")],
    lm: Annotated[
        str,
        typer.Option(
            help="Language model: a transformers folder, a hub id, or the URL of an OpenAI-compatible server."
        ),
    ],
    n: Annotated[int, typer.Option("--n", min=1, max=1_000_000, help="Number of prompts.")],
    classes: Classes = "coco",
    split: Annotated[
        str | None,
        typer.Option(help="Name seen classes only: 1, 2, 3 or zs3, or a file with one unseen class per line."),
    ] = None,
    objects: Objects = None,
    cooccurrence: Cooccurrence = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Text-to-image model whose text encoder the prompts must fit; without it, 45 words are allowed."
        ),
    ] = None,
    lm_model: Annotated[str | None, typer.Option(help="Name of the model on the server, if it offers several.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the prompts.")] = 0,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Prompts that are requested together.")] = 16,
    attempts: Annotated[
        int, typer.Option(min=1, max=1000, help="Rounds in which a prompt is requested before it is left out.")
    ] = 8,
    temperature: Annotated[float, typer.Option(min=0.01, max=5, help="Sampling temperature.")] = 1.0,
    top_p: Annotated[float, typer.Option(min=0.01, max=1, help="Probability mass of nucleus sampling.")] = 0.95,
    max_tokens: Annotated[
        int, typer.Option(min=8, max=65536, help="Tokens per answer, including any reasoning.")
    ] = 120,
    device: Device = "auto",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Precision of the language model; float32 on CPUs and bfloat16 on GPUs by default."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a prompts file with a language model.

    Prompts are varied sentences that name the given classes and no others. Each line is checked, and requested again if
    it is rejected. Rerun the same command to resume. The API key of a server is read from the environment variable
    OPENAI_API_KEY.

    Example: factory prompts --classes voc --n 1000 --objects "1:0.5,2:0.5" --lm Qwen/Qwen3-4B --out prompts.jsonl

    Example: factory prompts --classes dog,cat --n 200 --lm http://localhost:8000/v1 --out prompts.jsonl

    Exit codes: 0 complete, 2 invalid input, 3 no prompt was accepted, 4 complete, but some prompts were rejected in
    every attempt, 75 the server does not respond.
    """
    from factory.cli.options import assemble
    from factory.cli.progress import progress_bar
    from factory.config.plan import class_sequence
    from factory.generator.load import model_folder
    from factory.prompts.check import Fits, LineCheck, few_words
    from factory.prompts.file import PromptsFile, check_target
    from factory.prompts.interface import Sampling
    from factory.prompts.write import Job, write_prompts

    fields = {
        "classes": classes,
        "n": n,
        "objects": objects,
        "cooccurrence": cooccurrence,
        "seed": seed,
        "split": split,
    }
    recipe = assemble(None, None, fields | ({"masks": "detector"} if split is not None else {}))
    if model is not None:
        model_folder(model)  # first everything that needs no model library
    check_target(out)
    sampling = Sampling(temperature, top_p, max_tokens)
    language_model = _opened(lm, lm_model, device, dtype, sampling)
    fits: Fits = few_words
    encoder = None
    if model is not None:
        from factory.prompts.text_encoder import open_text_encoder

        fits, encoder = open_text_encoder(model)
    file = PromptsFile(out, _settings(recipe, batch, attempts, encoder, language_model.identity | asdict(sampling)))
    if not file.open():
        job = Job(recipe.vocabulary(), recipe.planned_names(), class_sequence(recipe), n, seed, batch, attempts)
        with progress_bar("prompts", n, quiet=as_json) as progress:
            write_prompts(job, file, LineCheck(recipe.vocabulary(), fits), language_model, progress)
    data = _summary(file, n)
    to_stdout(dumps(data) if as_json else _as_text(data))
    raise typer.Exit(data["exit_code"])


def _opened(lm: str, lm_model: str | None, device: str, dtype: str | None, sampling: "Sampling") -> "LanguageModel":
    from factory.errors import UserError
    from factory.prompts.server import ServerModel, is_url

    if not lm.strip():
        raise UserError("--lm is empty; give the folder or hub id of a language model, or the URL of a server.")
    if is_url(lm):
        if dtype is not None or device != "auto":
            option = f"--dtype {dtype}" if dtype is not None else f"--device {device}"
            raise UserError(f"{option} has no effect with the URL of a server; leave it out, or give a model to --lm.")
        return ServerModel(lm, lm_model, sampling)
    if lm_model is not None:
        raise UserError("--lm-model names a model on a server; leave it out, or give the URL of a server to --lm.")
    from factory.prompts.local_model import LocalModel, model_folder
    from factory.training.devices import check_device_name, chosen_device

    model_folder(lm)
    check_device_name(device)
    chosen = chosen_device(device)
    return LocalModel(lm, chosen, dtype or ("float32" if chosen == "cpu" else "bfloat16"), sampling)


def _settings(
    recipe: "Recipe", batch: int, attempts: int, encoder: dict[str, str] | None, language_model: dict[str, Any]
) -> dict[str, Any]:
    """Everything that determines the content of the file."""
    content = recipe.content()
    fields = {name: content.get(name) for name in ("classes", "oracle", "objects", "cooccurrence", "seed")}
    return {
        **fields,
        "n": recipe.n,
        "batch": batch,
        "attempts": attempts,
        "text_encoder": encoder,
        "language_model": language_model,
    }


def _summary(file: "PromptsFile", n: int) -> dict[str, Any]:
    progress = file.progress
    rejected = dict(sorted(progress.rejected.items()))
    lines = len(progress.texts) + sum(rejected.values())
    return {
        "prompts_file": str(file.path),
        "digest": file.digest(),
        "prompts": len(progress.texts),
        "n": n,
        "exhausted": progress.exhausted,
        "lines": lines,
        "yield": round(len(progress.texts) / lines, 4) if lines else None,
        "rejected": rejected,
        "exit_code": _exit_code(len(progress.texts), progress.exhausted),
    }


def _exit_code(accepted: int, exhausted: int) -> int:
    from factory import exit_codes

    if not accepted:
        return exit_codes.FAILED
    return exit_codes.EXHAUSTED if exhausted else exit_codes.DONE


def _as_text(data: dict[str, Any]) -> str:
    lines = [
        f"{data['prompts']} of {data['n']} prompts in {data['prompts_file']}, from {data['lines']} lines of the "
        f"language model; SHA-256 {data['digest'][:12]}."
    ]
    if data["rejected"]:
        lines.append(f"Rejected: {tally(data['rejected'])}.")
    if not data["prompts"]:
        lines.append(
            "No prompt was accepted; docs/prompts.md explains the reasons. Delete the file, and rerun the command with "
            "another --lm or other options."
        )
    elif data["exhausted"]:
        left_out = counted(data["exhausted"], "prompt was", "prompts were")
        lines.append(f"{left_out} rejected in every attempt and left out.")
    return "\n".join(lines)
