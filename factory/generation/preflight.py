"""What would stop a run in its first minutes, found in a second by the driver: before a folder is claimed.

Only configurations and tokenizers are read. Weights are checked where they are loaded, by the workers.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from factory.config.plan import Plan
from factory.config.prompts import Prompt, captioned
from factory.config.recipe import Recipe
from factory.errors import UserError
from factory.generator.layout import attention_levels, component_names, read_config, read_index
from factory.generator.load import check_generator
from factory.generator.schedulers import is_consistency
from factory.generator.tokens import class_tokens
from factory.grounder.folder import grounder_folder
from factory.grounder.folder import read_config as read_grounder

_LOOKED_THROUGH = 100_000
_AT_A_TIME = 1000


def preflight(recipe: Recipe) -> None:
    """UserError for what a worker would refuse: parts that are missing or do not fit, sizes, solver, levels, prompts.

    A hub model's configurations are downloaded for it, a few kilobytes.
    """
    recipe.fingerprint()  # of names that are no text, it says so
    folder = check_generator(recipe.generator)
    scheduler, unet = read_config(folder, "scheduler"), read_config(folder, "unet")
    _check_noise_levels(recipe, scheduler)
    _check_levels(recipe, unet)
    kind = str(read_index(folder)["scheduler"][1])
    if recipe.real is not None and recipe.real.method == "ddim" and is_consistency(kind, unet):
        raise UserError(
            f"{recipe.generator.model} is a consistency model, along which no image can be followed to noise and back; "
            f"give --method noise, or another --model."
        )
    tokenizers = [_tokenizer(folder / name) for name in component_names(read_index(folder))[1]]
    if _reads_words(recipe):
        _check_prompts(_prompts(recipe, tokenizers[0]), tokenizers[0])


def _check_noise_levels(recipe: Recipe, scheduler: dict[str, Any]) -> None:
    known, most = int(scheduler.get("num_train_timesteps", 1000)), max(recipe.masks.timesteps)
    if most >= known:
        raise UserError(
            f"masks.timesteps names {most}, and {recipe.generator.model} has the noise levels 0 to {known - 1}."
        )


def _check_levels(recipe: Recipe, unet: dict[str, Any]) -> None:
    levels, known = recipe.masks.levels, attention_levels(unet)
    if recipe.masks.source == "attention" and levels is not None and not known & set(levels):
        raise UserError(
            f"masks.levels {list(levels)} are not among the levels with cross-attention of {recipe.generator.model}, "
            f"{sorted(known)}."
        )


def _reads_words(recipe: Recipe) -> bool:
    """Whether masks, now or of the grounder that is trained later, come from the attention to a class's own words."""
    if recipe.oracle is not None or recipe.masks.source == "attention":
        return True
    if recipe.masks.source in ("detector", "labels"):
        return False
    return read_grounder(grounder_folder(recipe.masks.source)).module != "paper"


def _check_prompts(prompts: Iterator[tuple[str, Prompt]], tokenizer: Any) -> None:
    """UserError where a class has no words that the text encoder reads.

    Texts are counted many at a time, which is fast; only those that are too long, or lack words, are looked at closely.
    """
    while rows := list(islice(prompts, _AT_A_TIME)):
        counted = tokenizer([prompt.text for _, prompt in rows], truncation=False, verbose=False).input_ids
        for (where, prompt), tokens in zip(rows, counted, strict=True):
            if len(tokens) <= tokenizer.model_max_length and None not in prompt.spans():
                continue
            try:
                class_tokens(tokenizer, prompt)
            except UserError as error:
                raise UserError(f"{where}: {error}") from None


def _prompts(recipe: Recipe, tokenizer: Any) -> Iterator[tuple[str, Prompt]]:
    """The prompts to check, each with a name for it.

    Captions always hold the words of their classes, and only where the longest names together come near the encoder's
    end are they looked through one by one.
    """
    own = recipe.user_prompts()
    if own is not None:
        yield from ((f"prompt {number}", prompt) for number, prompt in enumerate(own, 1))
        return
    vocabulary = recipe.vocabulary()
    most = max(count for count, share in recipe.objects.items() if share)
    names = sorted(recipe.planned_names(), key=lambda name: -len(tokenizer(vocabulary.resolve(name).display).input_ids))
    try:
        class_tokens(tokenizer, captioned(vocabulary, names[:most]))
    except UserError:
        for sample in islice(Plan(recipe).samples(), _LOOKED_THROUGH):
            yield f"sample {sample.index}", sample.prompt


def _tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the libraries below raise many kinds
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"the tokenizer in {folder} cannot be read: {said}. Download or save it again.") from error
