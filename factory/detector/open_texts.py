"""What open-vocabulary detectors search for, and whether they can read it. Reads no weights."""

from collections.abc import Mapping, Sequence
from typing import Any

from factory.config.recipe import Recipe
from factory.config.vocabulary import article
from factory.detector.hub_models import load_config, load_tokenizer
from factory.detector.open_names import OpenName
from factory.errors import UserError

SAM3_LENGTH = 32
"""Tokens that SAM 3 reads."""


def texts_of(recipe: Recipe) -> dict[str, str]:
    """The words for each class that prompts may name: the names that prompts use, those of COCO for VOC classes."""
    planned = recipe.planned_names()
    return {entry.name: entry.display for entry in recipe.vocabulary().classes if entry.name in planned}


def check_texts(name: OpenName, revision: str | None, texts: Mapping[str, str]) -> None:
    """Raise UserError if the words for a class are none, or more than the model reads.

    For a hub model, this downloads its tokenizer and its config.
    """
    source, first = name.models[0], name.revisions(revision)[0]
    tokenizer = load_tokenizer(source, first)
    queries = {class_name: _query(name.kind, text) for class_name, text in texts.items()}
    if name.kind == "grounding-dino":
        for class_name, query in queries.items():
            tokens = tokenizer(query, add_special_tokens=False).input_ids
            if sum(token != tokenizer.unk_token_id for token in tokens) < 2:  # the dot is one
                raise UserError(
                    f"the class name {class_name[:60]!r} has no words that the detector {source} knows; give another "
                    f"name."
                )
    limit = SAM3_LENGTH if name.kind == "sam3" else _limit(load_config(source, first), name.kind)
    for class_name, query in queries.items():
        count = len(tokenizer(query, verbose=False).input_ids)
        if count > limit:
            raise UserError(
                f"the class name {class_name[:60]!r} is too long for the detector {source}: its query has {count} "
                f"tokens, but the model reads {limit}; give a shorter name."
            )


def owlv2_query(text: str) -> str:
    """The query of OWLv2 for a class."""
    return f"a photo of {article(text)}{text}"


def joined(texts: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """("dog. traffic light.", the range of characters of each text), in lower case, as GroundingDINO expects it.

    A dot separates names, so dots within a name are left out.
    """
    parts, spans, start = [], [], 0
    for text in texts:
        plain = " ".join(text.lower().replace(".", " ").split())
        parts.append(f"{plain}.")
        spans.append((start, start + len(plain)))
        start += len(plain) + 2
    return " ".join(parts), spans


def _query(kind: str, text: str) -> str:
    if kind == "grounding-dino":
        return joined([text])[0]
    return owlv2_query(text) if kind == "owlv2" else text


def _limit(config: Any, kind: str) -> int:
    return int(config.max_text_len if kind == "grounding-dino" else config.text_config.max_position_embeddings)
