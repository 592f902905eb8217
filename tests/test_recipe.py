"""Recipes: validation, error messages, prompts files, and what the fingerprint covers."""

import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from factory.config.differences import differences
from factory.config.prompts import Prompt, read_prompts
from factory.config.recipe import load_recipe, make_recipe, parse_recipe
from factory.config.vocabulary import coco
from factory.errors import UserError


@pytest.mark.parametrize(
    "change",
    [{}, *({"generator": {"negative": text}} for text in ("a\x85b", "\x85", "caf\u00e9\u2028b", "\ufeff~", " a\n"))],
)
def test_yaml_round_trip(change: dict[str, Any]) -> None:
    recipe = make_recipe({"n": 10, "classes": ["dog", "cat"], "objects": {2: 1}, "generator": {"steps": 3}} | change)
    assert make_recipe(parse_recipe(recipe.to_yaml(), "it")) == recipe


@pytest.mark.parametrize("change", [{"n": 11}, {"engine": {"workers": 3}}, {"n": 12, "earlier": [10]}])
def test_size_and_engine_do_not_change_the_fingerprint(change: dict[str, Any]) -> None:
    assert make_recipe({"n": 10} | change).fingerprint() == make_recipe({"n": 10}).fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"batch": 4},
        {"generator": {"threads": 2}},
        {"filters": {"min_area": 0}},
        {"filters": {"min_largest_region": 0}},
    ],
)
def test_settings_that_affect_the_bytes_change_the_fingerprint(change: dict[str, Any]) -> None:
    assert make_recipe({"n": 10} | change).fingerprint() != make_recipe({"n": 10}).fingerprint()


@pytest.mark.parametrize(
    ("format", "fingerprint"),
    [
        (1, "ae6cbe1876025bfff15a01d44862e85f182a9d18877d4b18761cc84a268d5b24"),
        (2, "9b5052ef80b32d40e88bc5a156ec03729207de52bd78bc67358b7ac0256b14ab"),
    ],
)
def test_datasets_of_earlier_formats_keep_their_fingerprint(format: int, fingerprint: str) -> None:
    """The values of the versions that wrote these formats; with other ones, no command would read their datasets."""
    generator = {"steps": 12, "guidance": 3, "solver": "dpm++"}
    masks = {"source": "stickers", "capture": "sampling", "timesteps": [100]}
    recipe = make_recipe({"n": 30, "format": format, "generator": generator, "masks": masks})
    assert recipe.fingerprint() == fingerprint


def test_datasets_without_a_later_filter_keep_their_fingerprint() -> None:
    assert "min_largest_region" not in make_recipe({"n": 10}).content()["filters"]


@pytest.mark.parametrize(
    ("data", "source"),
    [
        ({}, "stickers"),
        ({"masks": {"source": "attention"}}, "attention"),
        ({"masks": {"threshold": 0.4}}, "attention"),
        ({"masks": {"score": 0.6}}, "stickers"),
        ({"generator": {"model": "some/model"}}, "attention"),
        ({"generator": {"model": "stickers-turbo"}}, "stickers-turbo"),
    ],
)
def test_embedded_model_defaults_to_the_embedded_grounder(data: dict[str, Any], source: str) -> None:
    assert make_recipe({"n": 1} | data).masks.source == source


@pytest.mark.parametrize(("model", "steps", "guidance"), [("stickers", 8, 3), ("stickers-turbo", 4, 1)])
def test_steps_and_guidance_default_to_those_of_the_embedded_model(model: str, steps: int, guidance: float) -> None:
    generator = make_recipe({"n": 1, "generator": {"model": model}}).generator
    assert (generator.steps, generator.guidance) == (steps, guidance)


@pytest.mark.parametrize("model", [["stickers"], {"a": 1}, 3])
def test_a_model_of_another_type_is_one_clear_error(model: Any) -> None:
    with pytest.raises(UserError, match="model"):
        make_recipe({"n": 1, "generator": {"model": model}})


DOG = [{"text": "a dog", "classes": {"dog": "dog"}}]


@pytest.mark.parametrize(
    ("stored", "given", "lines"),
    [
        ({"masks": {"source": "attention", "detector": "x"}}, {"masks": {"source": "attention"}}, []),
        (
            {"masks": {"source": "detector", "detector": "x"}},
            {"masks": {"source": "detector"}},
            ['masks.detector: "x" -> "stickers"'],
        ),
        ({"prompts": DOG, "objects": {2: 1}}, {"prompts": DOG}, []),
        ({"generator": {"model": "/a/b/../m"}}, {"generator": {"model": "/a/c/../m"}}, []),
        ({"objects": {2: 1}}, {}, ["objects.2: 1.0 -> null", "objects.1: null -> 1.0"]),
        ({"generator": {"guidance": 1, "guidance_schedule": "linear"}}, {"generator": {"guidance": 1}}, []),
        (
            {"generator": {"guidance": 3, "guidance_schedule": "linear"}},
            {"generator": {"guidance": 3}},
            ['generator.guidance_schedule: "linear" -> null'],
        ),
    ],
)
def test_only_fields_with_an_effect_are_a_difference(
    stored: dict[str, Any], given: dict[str, Any], lines: list[str]
) -> None:
    """Earlier versions stored options that are rejected today; their datasets must be resumable without them."""
    base = {"n": 1, "classes": ["dog", "cat"]}
    old, new = make_recipe(base | stored), make_recipe(base | given)
    assert old.fingerprint() != new.fingerprint()
    assert differences(old, new) == lines


def test_differences_list_field_and_both_values() -> None:
    old, new = make_recipe({"n": 1}), make_recipe({"n": 1, "generator": {"steps": 30}, "seed": 4})
    assert differences(old, new) == ["seed: 0 -> 4", "generator.steps: 8 -> 30"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"n": 0}, "n must be at least 1 .got 0."),
        ({"n": 5, "sead": 3}, r"there is no field sead .did you mean seed\?."),
        ({"n": 5, "steps": 3}, r"there is no field steps .did you mean generator\.steps\?."),
        ({"n": 5, "generator": {"size": 3}}, r"there is no field generator\.size\."),
        ({"n": 5, "classes": {"dog", "cat"}}, "classes must be a list, got a set, which has no order"),
        ({"n": "x" * 500}, r"n must be a valid integer .got 'x+\.\.\.x+'.\. See"),
        ({"n": ["x" * 500, "x" * 500]}, r"n must be a valid integer .got \['x+\.\.\.x+\.\.\..\. See"),
        ({"n": 5, "prompts": [{"text": "a dog", "classes": ["dog", "dog"]}]}, "classes must name each class once"),
        ({"n": 5, "prompts": [{"text": "a dog", "classes": [1]}]}, "classes must be a list of class names, or"),
        ({"n": 5, "objects": {7: 1}}, "objects must be 1 to 6"),
        ({"n": 5, "objects": "1:0.5,2:0.5"}, "objects must map numbers of objects to shares, as in"),
        ({"n": 5, "classes": ["dog"], "objects": {2: 1}}, "2 objects per prompt require at least 2 classes, got 1"),
        ({"n": 5, "classes": ["dog", "dog"]}, "is repeated"),
        ({"n": 5, "earlier": [6]}, "earlier must contain ascending sizes from 1 to n - 1"),
        ({}, "n is missing"),
        ({"n": 5, "classes": ["dog", 3]}, r"^the recipe: classes\.1 must be a string .got 3.\. See"),
        ({"n": 4.5}, r"^the recipe: n must be a valid integer .got 4\.5.\. See"),
        ({"n": 5, "classes": None}, r"^the recipe: classes must be a list .got None.\. See"),
        ({"n": 5, "classes": []}, r"--classes dog,cat\. See"),
        ({"n": 5, "generator": "dit"}, "generator must be a mapping of fields to values .got 'dit'."),
        ({"n": 5, "prompts": "p.txt"}, "prompts must be a list .got 'p.txt'."),
        ({"n": 5, "generator": {"model": ""}}, "generator.model must have at least 1 character"),
        ({"n": 5, "generator": {"lora": ""}}, "generator.lora must have at least 1 character"),
        ({"n": 5, "masks": {"source": ""}}, "masks.source must have at least 1 character"),
        ({"n": 5, "masks": {"detector": ""}}, "masks.detector must have at least 1 character"),
        ("recipe.yaml", "the recipe must be a mapping such as .*, got a str"),
        ({"n": 5, "batch": "many"}, "^the recipe: batch must be a whole number from 1 to 1024, or auto .got 'many'"),
        ({"n": 5, "batch": -1}, "batch must be a whole number from 1 to 1024, or auto .got -1."),
        ({"n": 5, "batch": 0.0}, "batch must be a whole number from 1 to 1024, or auto .got 0.0."),
        ({"n": 5, "generator": {"width": 8200}}, "generator.width must be at most 8192 .got 8200."),
        ({"n": 5, "filters": {"min_area": 0.95}}, "min_area must not be above max_area, .*, got 0.95 and 0.9"),
        ({"n": 5, "masks": {"levels": [True, 2]}}, "levels must contain numbers, not booleans"),
        ({"n": 5, "objects": {1: True}}, "objects must contain numbers, not booleans"),
        ({"n": 5, "objects": {1: 0.5, "01": 0.2}}, "objects must contain each number of objects once, got 1, 01"),
        (
            {"n": 5, "classes": "dog,cat"},
            r"^the recipe: classes must be coco, voc or a list .* .got 'dog,cat'.\. See",
        ),
        (
            {"n": 5, "cooccurrence": "p.csv"},
            r"^the recipe: cooccurrence must be coco or a table .* .got 'p.csv'.\. See",
        ),
    ],
)
def test_invalid_recipe_raises_an_error_that_names_the_field(data: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_recipe(data)


@pytest.mark.parametrize("kind", [list, tuple])
def test_classes_of_a_prompt_are_a_list_or_have_phrases(kind: Any) -> None:
    given = make_recipe({"n": 1, "prompts": [{"text": "a puppy and a cat", "classes": kind(["dog", "cat"])}]})
    assert given == make_recipe({"n": 1, "prompts": [{"text": "a puppy and a cat", "classes": {"dog": "", "cat": ""}}]})


def test_of_many_invalid_fields_the_first_are_named() -> None:
    with pytest.raises(UserError, match=r"prompts\.0\.classes must .*; and 990 more\. See") as raised:
        make_recipe({"n": 4, "prompts": [{"text": "a dog", "classes": "dog"}] * 1000})
    assert len(str(raised.value)) < 2000


def test_truncated_recipe_is_rejected(tmp_path: Path) -> None:
    whole = make_recipe({"n": 10, "classes": ["dog", "cat"]}).to_yaml()
    (tmp_path / "recipe.yaml").write_text(whole[: whole.index("shard_size") + 4])
    with pytest.raises(UserError, match="cannot parse "):
        load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n: 5\ngenerator: {steps: 4}\nmasks: {}\ngenerator: {guidance: 2}\n", "line 4 repeats the key 'generator'"),
        ("n: 5\nobjects:\n  1: 0.5\n  1: 0.2\n", "line 4 repeats the key '1'"),
        ("n: 5\nclasses: [dog\n", "line 3, column 1, while parsing a flow sequence from line 2: expected ',' or "),
        ("n: 5\nmasks: source: detector\n", "line 2, column 14: mapping values are not allowed here."),
        ("n: !!timestamp 2026-13-45\n", "cannot parse .*: the tag !!timestamp on line 1 is not supported"),
        ("n: !!int ''\n", "cannot parse "),
        ("n: " + "[" * 5000, "cannot parse .* nested too deeply"),
    ],
    ids=["section", "number", "bracket", "colon", "date", "tag", "nesting"],
)
def test_recipe_with_invalid_yaml_is_rejected(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_recipe(tmp_path / "recipe.yaml")


def test_nested_aliases_are_not_expanded_in_a_message() -> None:
    levels = [f"- &a{level} [{', '.join([f'*a{level - 1}'] * 8)}]" for level in range(1, 6)]
    data = parse_recipe("\n".join(["n: 5", "classes:", "- &a0 [x]", *levels]), "the recipe")
    tracemalloc.start()
    with pytest.raises(UserError, match=r"classes\.0 must be a string"):
        make_recipe(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**17
    with pytest.raises(UserError, match="aliases expand to more than"):
        parse_recipe(
            "\n".join(["n: 5", "classes:", "- &a0 [x]", *levels, "- [*a5, *a5, *a5, *a5, *a5, *a5]"]), "the recipe"
        )


def test_scalars_of_yaml_1_1_are_read_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("n: 0100\nclasses: [no, 2:1, 2026-11-28]\ngenerator: {guidance: 2.5e+0}\n")
    data = load_recipe(tmp_path / "recipe.yaml")
    assert data["classes"] == ["no", "2:1", "2026-11-28"]
    assert make_recipe(data).n == 100
    assert make_recipe(data).generator.guidance == 2.5
    recipe = make_recipe(
        {"n": 5, "classes": ["no", "1e3", "0x10", "1:30", "~", "12e45"], "masks": {"threshold": 1e-05}}
    )
    assert make_recipe(parse_recipe(recipe.to_yaml(), "the recipe")) == recipe


def test_prompts_file_defines_text_classes_and_phrases(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text('# mine\na puppy on grass\tdog=puppy\n{"text": "a sofa and a cat", "classes": ["couch", "cat"]}\n')
    first, second = read_prompts(path, coco())
    assert (first.classes, first.phrases, first.spans()) == (("dog",), ("puppy",), [(2, 7)])
    assert (second.classes, second.phrases) == (("couch", "cat"), ("sofa", "cat"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a dog", "a tab and comma-separated classes"),
        ("# mine\na dog\tzebar", r"p\.txt, line 2: there is no class 'zebar' in coco; did you mean zebra"),
        ('{"text": 3', "a JSON line must be"),
        ("", "is empty"),
    ],
)
def test_invalid_prompts_file_is_rejected(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "p.txt").write_text(line + "\n")
    with pytest.raises(UserError, match=message):
        read_prompts(tmp_path / "p.txt", coco())


def test_class_name_inside_a_longer_name_matches_its_own_phrase(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a photograph of a hot dog and a dog\tdog, hot dog\n")
    (prompt,) = read_prompts(tmp_path / "p.txt", coco())
    assert [prompt.text[slice(*span)] for span in prompt.spans() if span] == ["dog", "hot dog"]
    assert prompt.spans()[0] == (32, 35)


@pytest.mark.parametrize(
    ("text", "classes", "spans"),
    [
        ("一张狗的照片", ("狗",), [(2, 3)]),
        ("热狗和狗在桌子上", ("狗", "热狗"), [(3, 4), (0, 2)]),
        ("热狗和狗在桌子上, 狗", ("狗",), [(10, 11)]),
        ("庭にいる犬の写真", ("犬",), [(4, 5)]),
        ("ภาพถ่ายของแมวในสวน", ("แมว",), [(10, 13)]),
        ("一只dog在草地上", ("dog",), [(2, 5)]),
        ("two dogs", ("dog",), [None]),
    ],
)
def test_classes_are_found_in_texts_without_spaces_between_words(
    text: str, classes: tuple[str, ...], spans: list[tuple[int, int] | None]
) -> None:
    """Masks from attention could not be made for prompts in the language that Qwen-Image and Z-Image know best."""
    assert Prompt(text, classes, classes).spans() == spans


def test_store_section_is_not_written_and_rejects_secrets() -> None:
    plain, reached = make_recipe({"n": 4}), make_recipe({"n": 4, "store": {"endpoint": "https://minio:9000"}})
    assert reached.fingerprint() == plain.fingerprint()
    assert reached.to_yaml() == plain.to_yaml()
    assert "store" not in plain.to_yaml()
    for section in (
        {"secret_access_key": "hunter22"},
        {"endpoint": "https://me:hunter22@minio"},
        {"endpoint": "https://minio/?sig=hunter22"},
        {"profile": ["hunter22"]},
    ):
        with pytest.raises(UserError, match="store") as raised:
            make_recipe({"n": 4, "store": section})
        assert "hunter22" not in str(raised.value)


ORACLE = {"split": "1", "seen": ["dog"]}
REAL = {"dataset": "voc", "root": "r", "keys": ["a", "b"], "labels_digest": "d"}
LABELS = {"source": "labels", "noise_level": 0.5}
PROMPTS = [{"text": "a dog", "classes": {"dog": "dog"}}]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"classes": [f"lynx {chr(97 + k // 26)}{chr(97 + k % 26)}" for k in range(255)]},
            "at most 254 classes, got 255",
        ),
        ({"prompts": []}, "prompts must be null or a list of at least one prompt"),
        ({"prompts_digest": "a" * 64}, "leave it out if there are no prompts"),
        (
            {"oracle": {"split": "1", "seen": ["dog", "unicorn"]}, "masks": {"source": "detector"}},
            r"seen classes \['unicorn'\]",
        ),
        (
            {"classes": ["Dog"], "oracle": {"split": "1", "seen": ["Dog"]}, "masks": {"source": "detector"}},
            r"seen classes \['Dog'\] are not classes of the dataset: dog",
        ),
        (
            {"oracle": ORACLE, "masks": {"source": "detector"}, "format": 2},
            "requires exactly one entry in masks.timesteps",
        ),
        ({"real": REAL}, "require the section `oracle`"),
        ({"real": REAL, "oracle": ORACLE, "masks": LABELS, "prompts": PROMPTS}, "got 2 images, 1 prompts"),
        ({"n": 3, "real": REAL, "oracle": ORACLE, "masks": LABELS, "prompts": PROMPTS * 2}, "of images, 2, got 3"),
    ],
)
def test_recipe_whose_sections_do_not_fit_together_is_rejected(data: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_recipe({"n": 2} | data)


def test_recipe_file_that_is_a_list_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("- n: 4\n")
    with pytest.raises(UserError, match=r"r\.yaml is not a recipe: it contains a list; write fields such as"):
        load_recipe(tmp_path / "r.yaml")
