"""Whether a text fits the text encoders of a text-to-image model."""

from factory.config.rich_prompts import vocabulary_words
from factory.config.sections import GeneratorRecipe
from factory.generator.layout import family_in, read_index
from factory.generator.load import config_folder, pin_generator
from factory.generator.text_reader import check_vocabulary, open_tokenizers, readers_of
from factory.prompts.check import Fits


def open_text_encoder(model: str) -> tuple[Fits, dict[str, str]]:
    """(whether a text fits the text encoder with the longest context, name and revision of the model).

    For a hub model, this downloads its configuration files. Raises UserError if there is no such model or if its text
    encoders do not know common words.
    """
    generator = pin_generator(GeneratorRecipe(model=model))
    folder = config_folder(generator)
    index = read_index(folder)
    tokenizers = open_tokenizers(folder, index)
    check_vocabulary(tokenizers, vocabulary_words(), model)
    reader = readers_of(family_in(index), str(index["_class_name"]), tokenizers)[0]

    def fits(text: str) -> bool:
        return not reader.too_long([text])[0]

    return fits, {"model": generator.model, "revision": str(generator.revision)}
