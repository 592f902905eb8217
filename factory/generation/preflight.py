"""Fast checks in the driver, before a dataset is created, for problems that would stop the workers minutes later.

Only configurations and tokenizers are read. The workers check the weights when they load them.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from factory.config.plan import Plan
from factory.config.prompts import Prompt, captioned
from factory.config.recipe import Recipe
from factory.config.rich_prompts import longest, vocabulary_words
from factory.errors import UserError
from factory.generator.layout import attention_levels, component_names, read_config, read_index
from factory.generator.load import check_generator
from factory.generator.schedulers import is_consistency
from factory.generator.tokens import check_words_known, class_tokens
from factory.grounder.folder import grounder_folder
from factory.grounder.folder import read_config as read_grounder

_MAX_SAMPLES = 100_000
_CHUNK = 1000


def preflight(recipe: Recipe) -> None:
    """UserError for anything a worker would reject: missing or incompatible components, sizes, solver, prompts.

    For a hub model, this downloads its configuration files (a few kilobytes).
    """
    recipe.fingerprint()  # rejects class names that are not valid text
    folder = check_generator(recipe.generator)
    scheduler, unet = read_config(folder, "scheduler"), read_config(folder, "unet")
    _check_noise_levels(recipe, scheduler)
    _check_levels(recipe, unet)
    kind = str(read_index(folder)["scheduler"][1])
    if recipe.real is not None and recipe.real.method == "ddim" and is_consistency(kind, unet):
        raise UserError(
            f"{recipe.generator.model} is a consistency model, which does not support DDIM inversion; give "
            f"--method noise or another --model."
        )
    tokenizers = [_tokenizer(folder / name) for name in component_names(read_index(folder))[1]]
    if recipe.prompt_style == "rich":
        for tokenizer in tokenizers:
            check_words_known(tokenizer, vocabulary_words(), recipe.generator.model)
    if _uses_class_tokens(recipe):
        _check_prompts(_prompts(recipe, tokenizers[0]), tokenizers[0])


def _check_noise_levels(recipe: Recipe, scheduler: dict[str, Any]) -> None:
    count, highest = int(scheduler.get("num_train_timesteps", 1000)), max(recipe.masks.timesteps)
    if highest >= count:
        raise UserError(
            f"masks.timesteps contains {highest}, but {recipe.generator.model} has the noise levels 0 to {count - 1}."
        )


def _check_levels(recipe: Recipe, unet: dict[str, Any]) -> None:
    levels, known = recipe.masks.levels, attention_levels(unet)
    if recipe.masks.source == "attention" and levels is not None and not known & set(levels):
        raise UserError(
            f"masks.levels {list(levels)} are not among the cross-attention levels of {recipe.generator.model}: "
            f"{sorted(known)}."
        )


def _uses_class_tokens(recipe: Recipe) -> bool:
    """Whether the masks, or a grounder trained on this dataset later, use the attention to the tokens of a class."""
    if recipe.oracle is not None or recipe.masks.source == "attention":
        return True
    if recipe.masks.source in ("detector", "labels"):
        return False
    return read_grounder(grounder_folder(recipe.masks.source)).module != "paper"


def _check_prompts(prompts: Iterator[tuple[str, Prompt]], tokenizer: Any) -> None:
    """UserError if a class has no tokens within the length that the text encoder reads.

    Texts are tokenized in chunks, which is fast; only those that are too long or miss a phrase are checked in detail.
    """
    while chunk := list(islice(prompts, _CHUNK)):
        encoded = tokenizer([prompt.text for _, prompt in chunk], truncation=False, verbose=False).input_ids
        for (where, prompt), tokens in zip(chunk, encoded, strict=True):
            if len(tokens) <= tokenizer.model_max_length and None not in prompt.spans():
                continue
            try:
                class_tokens(tokenizer, prompt)
            except UserError as error:
                raise UserError(f"{where}: {error}") from None


def _prompts(recipe: Recipe, tokenizer: Any) -> Iterator[tuple[str, Prompt]]:
    """(label, prompt) of each prompt to check.

    Generated prompts always contain their class names, so they can only fail by being too long. The prompt of the
    longest names is tried first; only if it fails are the prompts of all samples checked.
    """
    user_prompts = recipe.user_prompts()
    if user_prompts is not None:
        yield from ((f"prompt {number}", prompt) for number, prompt in enumerate(user_prompts, 1))
        return
    vocabulary = recipe.vocabulary()
    max_objects = max(count for count, share in recipe.objects.items() if share)
    names = sorted(recipe.planned_names(), key=lambda name: -len(tokenizer(vocabulary.resolve(name).display).input_ids))
    try:
        make = longest if recipe.prompt_style == "rich" else captioned
        class_tokens(tokenizer, make(vocabulary, names[:max_objects]))
    except UserError:
        for sample in islice(Plan(recipe).samples(), _MAX_SAMPLES):
            yield f"sample {sample.index}", sample.prompt


def _tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise many types
        message = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"the tokenizer in {folder} cannot be read: {message}. Download or save it again.") from error
