"""Fast checks in the driver, before a dataset is created, to find problems that would stop the workers minutes later.

Only configurations and tokenizers are read. The workers check the weights when they load them.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from factory.config.guidance import CONSTANT
from factory.config.plan import Plan
from factory.config.prompts import Prompt, captioned
from factory.config.recipe import Recipe
from factory.config.rich_prompts import longest, vocabulary_words
from factory.config.stickers import STICKERS
from factory.errors import UserError, counted, first_few
from factory.generator.family import Family
from factory.generator.layout import attention_levels, blocks_of, family_in, read_config, read_index, usable_values
from factory.generator.load import check_generator, config_folder
from factory.generator.lora import lora_file
from factory.generator.placement import check_extras
from factory.generator.schedulers import can_be_inverted, is_consistency
from factory.generator.text_reader import (
    TextReader,
    check_read,
    check_vocabulary,
    open_tokenizers,
    readers_of,
    unknown_words,
)
from factory.generator.tokens import partly_unknown
from factory.grounder.folder import grounder_folder, read_grounder_config

_MAX_SAMPLES = 100_000
_CHUNK = 1000
_log = logging.getLogger(__name__)


def preflight(recipe: Recipe, resumed: bool = False) -> None:
    """UserError for anything a worker would reject: missing or incompatible components, sizes, solver, prompts.

    Settings without an effect are rejected as well, except when a dataset is `resumed`, because older datasets may have
    them. For a hub model, this downloads its configuration files (a few kilobytes).
    """
    recipe.fingerprint()  # rejects class names that are not valid text
    check_extras(recipe.generator, recipe.engine.offload)
    if recipe.generator.lora is not None:
        lora_file(recipe.generator)
    folder = check_generator(recipe.generator)
    index = read_index(folder)
    family = family_in(index)
    with usable_values(folder):
        denoiser = read_config(folder, family.denoiser)
        if family.is_unet:
            _check_levels(recipe, denoiser)
            _check_compiled(recipe)
        if not resumed:
            _check_guided(recipe, family)
        _check_blocks(recipe, family, denoiser)
        _check_inversion(recipe, family, str(index["scheduler"][1]), read_config(folder, "scheduler"), denoiser)
    tokenizers = open_tokenizers(folder, index)
    readers = readers_of(family, str(index["_class_name"]), tokenizers)
    if recipe.prompt_style == "rich":
        check_vocabulary(tokenizers, vocabulary_words(), recipe.generator.model)
    elif recipe.prompts and not resumed:
        _warn_of_unknown_words(recipe, tokenizers)
        _warn_of_long_prompts(recipe, readers[0])
    if _uses_class_tokens(recipe):
        _check_prompts(recipe, readers)
    if recipe.uses_detector() and not resumed:
        warn_of_sticker_detector(recipe, "give another --detector, such as sam3:facebook/sam3")


def warn_of_sticker_detector(recipe: Recipe, remedy: str) -> None:
    """Log that the embedded detector, the default, does not detect what a model of photographs generates."""
    if recipe.masks.detector != STICKERS:
        return
    folder, words = config_folder(recipe.generator), vocabulary_words()
    if not unknown_words(open_tokenizers(folder, read_index(folder)), words, words):
        _log.warning(
            "The detector %s was trained on stickers and is not suitable for the images of %s; %s.",
            STICKERS,
            recipe.generator.model,
            remedy,
        )


def _warn_of_unknown_words(recipe: Recipe, tokenizers: dict[str, Any]) -> None:
    """Log the words of custom prompts that a text encoder trained on a few captions does not know."""
    words = {word for prompt in recipe.user_prompts() or () for word in re.findall(r"\w+", prompt.text)}
    unknown = unknown_words(tokenizers, vocabulary_words(), sorted(words))
    if unknown:
        _log.warning(
            "The text encoder of %s was trained on a few captions only: it does not know %s of the prompts (%s), so "
            "images may not show what the prompts say.",
            recipe.generator.model,
            counted(len(unknown), "word"),
            first_few(unknown),
        )


def _warn_of_long_prompts(recipe: Recipe, reader: TextReader) -> None:
    """Log the custom prompts of which no text encoder reads the end."""
    texts, cut = [entry.text for entry in recipe.prompts or ()], list[str]()
    for start in range(0, len(texts), _CHUNK):
        too_long = reader.too_long(texts[start : start + _CHUNK])
        cut += [f"prompt {number}" for number, is_cut in enumerate(too_long, start + 1) if is_cut]
    if cut:
        _log.warning(
            "%s longer than the %d tokens that the text encoder of %s reads, so images may not show the end: %s.",
            counted(len(cut), "prompt is", "prompts are"),
            reader.max_tokens,
            recipe.generator.model,
            first_few(cut),
        )


def _check_levels(recipe: Recipe, unet: dict[str, Any]) -> None:
    levels, known = recipe.masks.levels, attention_levels(unet)
    if recipe.masks.source == "attention" and levels is not None and not known & set(levels):
        raise UserError(
            f"masks.levels {list(levels)} are not among the cross-attention levels of {recipe.generator.model}: "
            f"{sorted(known)}."
        )


def _check_compiled(recipe: Recipe) -> None:
    if recipe.generator.compile and recipe.engine.offload:
        raise UserError(
            "generator.compile has no effect on a U-Net with engine.offload, which replaces the compiled model at each "
            "call; remove one of the two."
        )


def _check_guided(recipe: Recipe, family: Family) -> None:
    """UserError for settings of guidance if the scale disables it."""
    generator = recipe.generator
    if generator.negative and generator.guidance <= family.unguided_scale:
        raise UserError(
            f"the negative prompt {generator.negative[:60]!r} has no effect with guidance {generator.guidance:g}, "
            f"which disables guidance; give a scale above {family.unguided_scale:g}, or remove generator.negative."
        )
    if generator.guidance_schedule != CONSTANT and generator.guidance <= 1:
        raise UserError(
            f"the guidance schedule `{generator.guidance_schedule}` has no effect with guidance "
            f"{generator.guidance:g}, which disables guidance; give a scale above 1, or leave the schedule out."
        )


def _check_blocks(recipe: Recipe, family: Family, denoiser: dict[str, Any]) -> None:
    blocks, count = recipe.masks.blocks, blocks_of(family, denoiser)
    if blocks is not None and family.is_unet:
        raise UserError(f"masks.blocks is for transformers; {recipe.generator.model} is a U-Net: set masks.levels.")
    if recipe.masks.levels is not None and not family.is_unet:
        raise UserError(f"masks.levels is for U-Nets; {recipe.generator.model} is a transformer: set masks.blocks.")
    if blocks is not None and count and max(blocks) >= count:
        raise UserError(
            f"masks.blocks contains {max(blocks)}, but {recipe.generator.model} has the blocks 0 to {count - 1}."
        )


def _check_inversion(
    recipe: Recipe, family: Family, kind: str, scheduler: dict[str, Any], denoiser: dict[str, Any]
) -> None:
    if recipe.real is None:
        return
    if not family.is_unet:
        raise UserError(
            f"{recipe.generator.model} is of the family {family.name}; real images can be inverted with a U-Net of "
            f"Stable Diffusion 1, 2 or XL: give another --model."
        )
    if recipe.real.method == "noise":
        return
    if is_consistency(kind, denoiser):
        raise UserError(
            f"{recipe.generator.model} is a consistency model, which does not support DDIM inversion; give "
            f"--method noise or another --model."
        )
    if not can_be_inverted(kind, scheduler):
        raise UserError(
            f"{recipe.generator.model} has a {kind}, whose noise levels DDIM inversion does not support; give "
            f"--method noise or another --model."
        )


def _uses_class_tokens(recipe: Recipe) -> bool:
    """Whether the masks, or a grounder trained on this dataset later, use the attention to the tokens of a class."""
    if recipe.oracle is not None or recipe.masks.source == "attention":
        return True
    if recipe.masks.source in ("detector", "labels"):
        return False
    return read_grounder_config(grounder_folder(recipe.masks.source)).module != "paper"


def _check_prompts(recipe: Recipe, readers: Sequence[TextReader]) -> None:
    """UserError if a class has no tokens within the length that the text encoders read.

    Texts are tokenized in chunks, which is fast; only those that are too long, have unknown words or miss a phrase are
    checked in detail.
    """
    prompts = _prompts(recipe, readers)
    while chunk := list(islice(prompts, _CHUNK)):
        doubtful = readers[0].doubtful([prompt.text for _, prompt in chunk])
        for (where, prompt), is_doubtful in zip(chunk, doubtful, strict=True):
            if not is_doubtful and None not in prompt.spans():
                continue
            try:
                check_read(readers, prompt)
            except UserError as error:
                raise UserError(f"{where}: {error}") from None


def _prompts(recipe: Recipe, readers: Sequence[TextReader]) -> Iterator[tuple[str, Prompt]]:
    """(label, prompt) of each prompt to check.

    Generated prompts always contain their class names, so they can only fail by being too long or by unknown names. The
    prompt of the longest names is tried first; only if it fails are the prompts of all samples checked.
    """
    user_prompts = recipe.user_prompts()
    if user_prompts is not None:
        yield from ((f"prompt {number}", prompt) for number, prompt in enumerate(user_prompts, 1))
        return
    vocabulary = recipe.vocabulary()
    max_objects = max(count for count, share in recipe.objects.items() if share)
    tokenizer = readers[0].tokenizer
    displayed = {name: vocabulary.resolve(name).display for name in recipe.planned_names()}
    tokens = {name: len(tokenizer(text).input_ids) for name, text in displayed.items()}
    names = sorted(tokens, key=lambda name: -tokens[name])
    unknown = [name for name, text in displayed.items() if partly_unknown(tokenizer, [text])[0]]
    try:
        make = longest if recipe.prompt_style == "rich" else captioned
        for chosen in (names[:max_objects], *([name] for name in unknown)):
            check_read(readers, make(vocabulary, chosen))
    except UserError:
        for sample in islice(Plan(recipe).samples(), _MAX_SAMPLES):
            yield f"sample {sample.index}", sample.prompt
