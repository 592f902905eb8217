"""Recipes from options, from a file, from the dataset, from Python and from a nightly configuration mean the same."""

import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from factory import api
from factory.cli.options import _FIELDS as FIELDS
from factory.cli.options import assemble
from factory.config.differences import differences
from factory.config.recipe import Recipe, load_recipe, make_recipe
from factory.dataset.storage import Store
from factory.errors import UserError
from factory.generation.hardware import for_hardware
from factory.generation.pin import pin_recipe
from factory.nightly.config import load_config


def _fields(options: dict[str, Any]) -> dict[str, Any]:
    """The options as fields of a recipe."""
    data: dict[str, Any] = {"classes": ["dog", "cat"], "n": 20, "objects": {1: 0.5, 2: 0.5}}
    for option, value in options.items():
        *sections, field = FIELDS[option]
        section = data
        for name in sections:
            section = section.setdefault(name, {})
        section[field] = value
    return data


def _prepared(recipe: Recipe) -> Recipe:
    return for_hardware(pin_recipe(recipe), None)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guidance": 3.0},
        {"guidance_schedule": "linear"},
        {"model": "stickers-turbo", "steps": 4},
        {"model": "stickers-turbo", "masks": "attention"},
        {"masks": "detector", "prompt_style": "rich"},
        {"dtype": "float32", "batch": "auto"},
        {"batch": "8", "min_confidence": 0.3, "workers": 2},
    ],
    ids=str,
)
def test_all_sources_of_a_recipe_give_the_same_dataset(options: dict[str, Any], tmp_path: Path) -> None:
    fields = _fields(options)
    given = {"classes": "dog,cat", "n": 20, "objects": "1:0.5,2:0.5", **options}
    file, dataset, night = tmp_path / "recipe.yaml", tmp_path / "set", tmp_path / "night.yaml"
    file.write_text(yaml.safe_dump(fields))
    night.write_text(yaml.safe_dump({"root": "nights", "recipe": {**fields, "seed": 0}}))
    expected = _prepared(assemble(None, None, given))
    dataset.mkdir()
    (dataset / "recipe.yaml").write_text(expected.to_yaml())
    sources = [
        assemble(file, None, {}),
        assemble(file, None, given),
        assemble(None, Store(str(dataset)), {}),
        assemble(None, Store(str(dataset)), {"n": 20, **options}),
        assemble(dataset / "recipe.yaml", None, {}),
        api._validated(make_recipe(fields)),
        api._validated(make_recipe(load_recipe(dataset / "recipe.yaml"))),
        load_config(night).recipe_of(datetime.date(2026, 11, 25)),
    ]
    for recipe in sources:
        assert _prepared(recipe).content() == expected.content()


def test_spelling_of_classes_and_prompts_is_no_difference(tmp_path: Path) -> None:
    """The option --classes contains the official names, a recipe file what its author wrote."""
    (tmp_path / "prompts.txt").write_text("a traffic light\ttraffic light\n")
    by_options = assemble(None, None, {"classes": "Dog,Traffic_Light", "n": 2, "prompts": tmp_path / "prompts.txt"})
    written = {"classes": ["Dog", "Traffic_Light"], "n": 2}
    prompts = [{"text": " a traffic light", "classes": ["Traffic_Light"]}]
    by_file = make_recipe({**written, "prompts": prompts})
    assert differences(by_options, by_file) == differences(by_file, by_options) == []
    assert len(differences(by_file, make_recipe({**written, "prompts": [{**prompts[0], "text": "a light"}]}))) == 1
    assert differences(by_file, make_recipe({**written, "classes": ["traffic light", "dog"], "prompts": prompts})) == [
        'classes: ["dog", "traffic light"] -> ["traffic light", "dog"]'
    ]


def test_a_recipe_in_the_home_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "recipe.yaml").write_text("n: 4\n")
    assert load_recipe("~/recipe.yaml") == {"n": 4}


def test_options_override_the_recipe_file(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("n: 4\nattempts: 3\nfilters: {min_confidence: 0.5, min_area: 0.1}\n")
    recipe = assemble(file, None, {"min_confidence": 0.85, "attempts": None, "steps": 7})
    assert (recipe.attempts, recipe.generator.steps) == (3, 7)
    assert (recipe.filters.min_confidence, recipe.filters.min_area) == (0.85, 0.1)


def test_an_option_does_not_replace_an_invalid_section(tmp_path: Path) -> None:
    """It replaced `generator: stickers-turbo` by its own field, so that another model generated the dataset."""
    file = tmp_path / "recipe.yaml"
    for section, option in (("generator: stickers-turbo", {"steps": 7}), ("engine: [4]", {"workers": 2})):
        file.write_text(f"n: 4\n{section}\n")
        for options in ({}, option):
            with pytest.raises(UserError, match=f"{section.partition(':')[0]} must be a mapping of fields to values"):
                assemble(file, None, options)


@pytest.mark.parametrize("options", [{}, {"model": "some/model"}, {"model": "stickers-turbo"}, {"guidance": 4.0}])
def test_a_recipe_in_its_dataset_means_the_same_as_a_recipe_file(options: dict[str, Any], tmp_path: Path) -> None:
    """Defaults of the embedded model counted as given, so that --model kept its grounder and steps."""
    (tmp_path / "recipe.yaml").write_text("classes: [dog]\nn: 4\ngenerator: {negative: blurry}\n")
    resumed = assemble(None, Store(str(tmp_path)), options)
    from_file = assemble(tmp_path / "recipe.yaml", None, options)
    assert resumed.model_dump(exclude_unset=True) == from_file.model_dump(exclude_unset=True)


def test_options_without_effect_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a puppy\tdog=puppy\n")
    common = {"n": 5, "classes": "dog"}
    with pytest.raises(UserError, match="--detector clipseg:x would not be used, because the masks come from stickers"):
        assemble(None, None, common | {"detector": "clipseg:x"})
    with pytest.raises(UserError, match="--objects has no effect on custom prompts"):
        assemble(None, None, common | {"prompts": tmp_path / "prompts.txt", "objects": "1:1"})
    assert assemble(None, None, common | {"detector": "clipseg:x", "masks": "detector"}).masks.detector == "clipseg:x"
    (tmp_path / "checked.yaml").write_text("filters: {min_detector_iou: 0.5}\n")
    assert assemble(tmp_path / "checked.yaml", None, common | {"detector": "clipseg:x"}).uses_detector()
