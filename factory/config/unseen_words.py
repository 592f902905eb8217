"""Checks that the prompts of an oracle dataset mention no unseen classes."""

from factory.config.class_words import ClassWords
from factory.config.prompts import Prompt, has_unspaced_words
from factory.config.recipe import Recipe
from factory.config.vocabulary import Vocabulary
from factory.errors import UserError


def check_no_unseen_classes(recipe: Recipe) -> None:
    """UserError if a prompt of an oracle dataset mentions an unseen class by a name, an alias or a plural.

    The image would show the class without a mask, so a grounder would learn that it is background. Synonyms are not
    considered, because many have another meaning, such as "table" or "plant".
    """
    prompts = recipe.user_prompts()
    if recipe.oracle is None or prompts is None:
        return
    vocabulary, seen = recipe.vocabulary(), set(recipe.oracle.seen)
    words = ClassWords(vocabulary)
    texts = dict.fromkeys(prompt.text for prompt in prompts)
    leaks = {
        text: name
        for text in texts
        for name in (
            *(mention.class_name for mention in words.mentions(text) if mention.exact),
            *_named_without_spaces(vocabulary, text),
        )
        if name not in seen
    }
    if leaks:
        text, name = next(iter(leaks.items()))
        rest = f", and {len(leaks) - 1} more mention one" if len(leaks) > 1 else ""
        raise UserError(
            f"the prompt {text[:100]!r} mentions {name}, an unseen class of split {recipe.oracle.split}{rest}; remove "
            f"such prompts, because a grounder would learn that the class is background."
        )


def _named_without_spaces(vocabulary: Vocabulary, text: str) -> list[str]:
    """The classes that a text names by a name or an alias, if its script has no spaces between words."""
    if not has_unspaced_words(text):
        return []
    spellings = [(entry.name, name) for entry in vocabulary.classes for name in (entry.name, *entry.aliases)]
    names, phrases = zip(*spellings, strict=True)
    spans = Prompt(text, names, phrases).spans()
    return [name for name, span in zip(names, spans, strict=True) if span is not None]
