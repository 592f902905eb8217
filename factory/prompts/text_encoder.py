"""Whether a text fits the text encoders of a text-to-image model."""

from pathlib import Path
from typing import Any

from factory.config.sections import GeneratorRecipe
from factory.errors import UserError
from factory.generator.layout import component_names, read_index
from factory.generator.load import config_folder, pin_generator
from factory.generator.tokens import check_words_known
from factory.prompts.check import Fits


def open_text_encoders(model: str) -> tuple[Fits, dict[str, str]]:
    """(whether a text has at most as many tokens as each encoder reads, the model's name and revision).

    For a hub model, this downloads its configuration files. Raises UserError if there is no such model or if its text
    encoders do not know common words.
    """
    from factory.config.rich_prompts import vocabulary_words

    generator = pin_generator(GeneratorRecipe(model=model))
    folder = config_folder(generator)
    tokenizers = [_tokenizer(folder / name) for name in component_names(read_index(folder))[1]]
    for tokenizer in tokenizers:
        check_words_known(tokenizer, vocabulary_words(), model)

    def fits(text: str) -> bool:
        return all(len(tokenizer(text).input_ids) <= tokenizer.model_max_length for tokenizer in tokenizers)

    return fits, {"model": generator.model, "revision": str(generator.revision)}


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise many types
        message = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"the tokenizer in {folder} cannot be read: {message}. Download or save it again.") from error
