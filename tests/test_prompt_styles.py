"""Prompt styles: what prompts of the style `rich` name, and that `simple` is what it was."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from factory.config import prompt_words
from factory.config.class_words import ClassWords, plural
from factory.config.plan import Plan
from factory.config.prompts import Prompt
from factory.config.recipe import make_recipe
from factory.config.rich_prompts import RichPrompts, vocabulary_words
from factory.config.splits import seen_classes
from factory.config.vocabulary import coco, from_names, voc
from factory.errors import UserError
from factory.generation.components import load_components
from factory.generation.preflight import preflight
from factory.generation.shard import produce
from factory.generator.tokens import class_positions
from factory.stickers.tokens import train_tokenizer
from tests.support.tiny_pipeline import tiny_pipeline

ADVERSARIAL = [
    "meadow",
    "old car",
    "car",
    "hot dog",
    "dog house",
    "dog",
    "photograph lens",
    "window",
    "axolotl",
    "brown",
]
MIXED = {1: 0.2, 2: 0.4, 3: 0.4}
FROZEN_FINGERPRINT = "1dcd615133f3f4db52150115fffa833cc704ce318c1c305ae3de9022ba95595d"
FROZEN_PROMPTS = "54d4c315a2d0e17d"


def prompts(n: int = 400, **data: Any) -> list[Prompt]:
    return [sample.prompt for sample in Plan(make_recipe({"n": n, "prompt_style": "rich", **data})).samples()]


def entries() -> list[str]:
    """All entries of the word lists."""
    lists = [value for name, value in vars(prompt_words).items() if name.isupper()]
    tuples = [part for value in lists for part in (value.values() if isinstance(value, dict) else [value])]
    return [entry for part in tuples for entry in part]


def test_recipes_without_a_style_keep_their_fingerprint() -> None:
    """The value of format 3; another one means that datasets made before cannot be resumed.

    Steps and guidance are given, because their defaults belong to the embedded model.
    """
    data = {"n": 30, "shard_size": 10, "objects": {1: 0.5, 2: 0.5}, "generator": {"steps": 12, "guidance": 3}}
    assert make_recipe(data).fingerprint() == FROZEN_FINGERPRINT
    assert make_recipe(data | {"prompt_style": "simple"}).fingerprint() == FROZEN_FINGERPRINT
    assert make_recipe(data | {"prompt_style": "rich"}).fingerprint() != FROZEN_FINGERPRINT


def test_the_grammar_is_frozen() -> None:
    """If this fails, recipes have changed their semantics: increment `format`."""
    texts = "\n".join(prompt.text for prompt in prompts(200, objects=MIXED))
    assert hashlib.sha256(texts.encode()).hexdigest()[:16] == FROZEN_PROMPTS


@pytest.mark.parametrize("vocabulary", [coco(), voc()])
def test_no_entry_of_the_word_lists_names_a_class_or_a_synonym(vocabulary: Any) -> None:
    words = ClassWords(vocabulary)
    assert len(entries()) > 150
    assert [entry for entry in entries() if words.mentions(entry)] == []


@pytest.mark.parametrize("classes", ["coco", "voc", ADVERSARIAL])
@pytest.mark.parametrize("objects", [{1: 1.0}, {2: 1.0}, {3: 1.0}])
def test_prompts_name_their_classes_once_and_no_others(classes: Any, objects: dict[int, float]) -> None:
    """Checked word by word and in a way of its own: no name, alias or plural of any class is outside the phrases."""
    vocabulary = make_recipe({"n": 1, "classes": classes}).vocabulary()
    names = {name for v in (vocabulary, coco(), voc()) for e in v.classes for name in (e.name, e.display, *e.aliases)}
    forbidden = {f" {form} " for name in names for form in (name, plural(name))}
    for prompt in prompts(150, classes=classes, objects=objects):
        spans = prompt.spans()
        assert None not in spans
        rest = prompt.text
        for start, end in sorted((span for span in spans if span), reverse=True):
            rest = f"{rest[:start]}[class]{rest[end:]}"
        rest = f" {rest.replace(',', ' ').replace('-', ' ').lower()} "
        assert not [name for name in forbidden if name in rest], prompt.text


def test_seen_classes_of_an_oracle_come_without_the_unseen_ones() -> None:
    words = ClassWords(coco())
    seen = seen_classes(coco(), "1")
    data = {"oracle": {"split": "1", "seen": list(seen)}, "masks": {"source": "detector"}, "objects": MIXED}
    for prompt in prompts(300, classes="coco", **data):
        assert {mention.class_name for mention in words.mentions(prompt.text)} == set(prompt.classes) <= set(seen)


def test_prompts_vary_and_their_classes_are_those_of_the_simple_style() -> None:
    rich = prompts(500, objects=MIXED)
    simple = prompts(500, objects=MIXED, prompt_style="simple")
    assert [prompt.classes for prompt in rich] == [prompt.classes for prompt in simple]
    assert len({prompt.text for prompt in rich}) == 500
    assert len({prompt.text.split(prompt.phrases[0])[-1] for prompt in rich}) > 450
    assert prompts(500, objects=MIXED, seed=1) != rich
    assert prompts(20, objects=MIXED) == rich[:20]


def test_the_words_of_another_class_fall_back_to_the_caption() -> None:
    """Every opening contains "photograph" or "photo"."""
    vocabulary = from_names(["photograph", "photo", "axolotl"])
    assert RichPrompts(vocabulary, 0).prompt(3, ["axolotl"]).text == "a photograph of an axolotl"


def test_the_tokens_of_each_class_are_found() -> None:
    rich = prompts(60, classes="coco", objects=MIXED)
    tokenizer = train_tokenizer([prompt.text for prompt in rich])
    tokenizer.model_max_length = 77
    for prompt in rich:
        ids = tokenizer(prompt.text).input_ids
        positions = class_positions(tokenizer, ids, prompt)
        assert positions.end == len(ids) - 1
        found = ["".join(tokenizer.decode([ids[k] for k in own]).split()) for own in positions.classes]
        assert found == [phrase.replace(" ", "") for phrase in prompt.phrases]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a hot dog and a dog", ["hot dog", "dog"]),
        ("two hot-dogs near hotdogs", ["hot dog", "hot dog"]),
        ("the dog's bowl, a carpet", ["dog", "bowl"]),
        ("A Traffic  Light. Stop, sign here", ["traffic light"]),
        ("The weather is hot. Dogs sleep", ["dog"]),
        ("a T. V. on a shelf", ["tv"]),
        ("a puppy and some people", ["dog", "person"]),
        ("knives, mice and wineglasses", ["knife", "mouse", "wine glass"]),
        ("a cart in a scarecrow's catalogue", []),
    ],
)
def test_mentions_of_classes(text: str, expected: list[str]) -> None:
    found = ClassWords(coco()).mentions(text)
    assert [mention.class_name for mention in found] == expected
    assert [mention.exact for mention in found] == [text[m.start : m.end].lower() != "puppy" for m in found]


def test_own_names_take_precedence_over_synonyms() -> None:
    words = ClassWords(from_names(["puppy", "dog", "table"]), others=True)
    assert [mention.class_name for mention in words.mentions("a puppy, a dog, a table")] == ["puppy", "dog", "table"]
    assert [mention.class_name for mention in words.mentions("a sofa")] == ["coco:couch"]
    assert ClassWords(from_names(["puppy", "axolotl"])).mentions("a sofa") == []


def test_a_style_with_custom_prompts_is_rejected() -> None:
    entry = {"text": "a dog", "classes": {"dog": "dog"}}
    with pytest.raises(UserError, match="prompt_style applies to generated prompts"):
        make_recipe({"n": 1, "prompt_style": "rich", "prompts": [entry]})
    with pytest.raises(UserError, match="prompt_style must be 'simple' or 'rich'"):
        make_recipe({"n": 1, "prompt_style": "poetic"})


def test_a_text_encoder_that_does_not_know_the_words_is_rejected() -> None:
    with pytest.raises(UserError, match=r"stickers was trained on a few captions only: it does not know \d+ of the"):
        preflight(make_recipe({"n": 2, "prompt_style": "rich"}))


def test_words_of_custom_prompts_that_a_text_encoder_does_not_know_are_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    prompts = [{"text": "a photograph of a dog", "classes": {"dog": "dog"}}]
    preflight(make_recipe({"n": 1, "classes": ["dog"], "prompts": prompts}))
    assert not caplog.messages
    prompts.append({"text": "a puppy at dusk", "classes": {"dog": "puppy"}})
    preflight(make_recipe({"n": 1, "classes": ["dog"], "prompts": prompts}))
    assert "it does not know 2 words of the prompts (dusk, puppy)" in caplog.text


def test_the_embedded_detector_is_not_used_for_photographs_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is the default, and would reject nearly every image."""
    detected = {"n": 1, "classes": ["dog"], "masks": {"source": "detector"}}
    preflight(make_recipe(detected))
    general = {"generator": {"model": str(tiny_pipeline(tmp_path / "model", words=vocabulary_words()))}}
    preflight(make_recipe({"n": 1, "classes": ["dog"], **general}))
    preflight(make_recipe(detected | general), resumed=True)
    assert not caplog.messages
    preflight(make_recipe(detected | general))
    assert "The detector stickers was trained on stickers and is not suitable for the images of" in caplog.text


def test_a_dataset_of_rich_prompts_is_generated(tmp_path: Path) -> None:
    model = tiny_pipeline(tmp_path / "model", words=vocabulary_words())
    recipe = make_recipe(
        {
            "n": 3,
            "prompt_style": "rich",
            "objects": {3: 1.0},
            "generator": {"model": str(model), "steps": 1},
            "filters": {"min_area": None, "max_overlap": None, "min_contrast": None},
        }
    )
    preflight(recipe)
    components = load_components(recipe)
    with ThreadPoolExecutor(1) as encoder:
        produced = produce(Plan(recipe).shard(0), recipe, components, encoder)
        records = [json.loads(future.result().members["json"]) for future in produced.samples]
    planned = [sample.prompt.text for sample in Plan(recipe).samples()]
    assert [record["prompt"] for record in records] == planned
    assert all("," in text for text in planned)
