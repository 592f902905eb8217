"""Text files as people bring them: class lists, prompts and splits of many editors and formats, read or refused."""

import codecs
import unicodedata
from pathlib import Path

import pytest

from factory.cli.options import assemble
from factory.config.class_file import read_class_file
from factory.config.prompts import read_prompts
from factory.config.recipe import make_recipe, parse_objects
from factory.config.vocabulary import coco, from_names, parse_classes, voc
from factory.errors import UserError
from factory.files.strict_yaml import parse_plain_yaml
from factory.files.text import MAX_TEXT_BYTES, read_lines, read_text

ENCODINGS = {
    "plain": "dog\ncafé\n".encode(),
    "bom": codecs.BOM_UTF8 + "dog\r\ncafé\r\n\r\n".encode(),
    "utf-16": "dog\r\ncafé".encode("utf-16"),
    "utf-16-be": codecs.BOM_UTF16_BE + "dog\ncafé \n \n".encode("utf-16-be"),
    "utf-32": "dog\ncafé\n".encode("utf-32"),
    "old-mac": b"dog\rcaf\xc3\xa9\r",
    "joined": codecs.BOM_UTF8 + b"dog\n" + codecs.BOM_UTF8 + "café\n".encode(),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_text_of_every_editor_gives_the_same_classes_prompts_and_splits(name: str, tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_bytes(ENCODINGS[name])
    vocabulary = parse_classes(str(tmp_path / "c.txt"))
    assert vocabulary.names == ("dog", "café")
    encoding = name if name.startswith("utf") else "utf-8-sig"
    (tmp_path / "p.txt").write_text("# mine\r\na dog in a café\tdog,café\r\n", encoding=encoding.replace("-be", ""))
    (prompt,) = read_prompts(tmp_path / "p.txt", vocabulary)
    assert (prompt.text, prompt.classes, prompt.phrases) == ("a dog in a café", ("dog", "café"), ("dog", "café"))
    (tmp_path / "s.txt").write_text("cat\r\n", encoding=encoding.replace("-be", ""))
    recipe = assemble(None, None, {"n": 1, "classes": "dog,cat", "split": str(tmp_path / "s.txt"), "masks": "detector"})
    assert recipe.oracle is not None
    assert recipe.oracle.seen == ("dog",)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"\x89PNG\r\n\x1a\n\x00\x00", "cannot be read .*save it as UTF-8"),
        (b"d\x00o\x00g\x00", r"line 1 holds the control character U\+0000"),
        (b"\xff\xfe\x00dog\x00", "cannot be read"),
        (b"dog\n\ncat\x1b[2J\n", r"line 3 holds the control character U\+001B"),
    ],
)
def test_what_is_no_text_is_refused(data: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(data)
    with pytest.raises(UserError, match=told):
        read_text(tmp_path / "x.txt", "class file")


def test_a_file_that_is_too_large_or_no_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.txt").open("wb") as stream:
        stream.truncate(MAX_TEXT_BYTES * 1000)  # sparse: it has no content on disk
    for path, told in ((tmp_path / "huge.txt", "has more than 67,108,864 bytes"), (tmp_path, "it is no file")):
        with pytest.raises(UserError, match=told):
            read_lines(path, "prompts file")


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        ("c.csv", "id,name\n1,lynx\n2,ibex\n", ["lynx", "ibex"]),
        ("c.csv", "class,name\n0,lynx\n1,ibex\n", ["lynx", "ibex"]),
        ("c.csv", "1,lynx\n2,ibex\n", ["lynx", "ibex"]),
        ("c.csv", "lynx\nibex\n", ["lynx", "ibex"]),
        ("c.csv", 'Name\n"traffic light"\nibex\n', ["traffic light", "ibex"]),
        ("c.csv", "lynx,ibex\n", ["lynx", "ibex"]),
        ("c.tsv", "name\tid\nlynx\t4\nibex\t9\n", ["lynx", "ibex"]),
        ("c.txt", "lynx, ibex, traffic light\n", ["lynx", "ibex", "traffic light"]),
        ("c.txt", "# comment\nlynx\n\n3d printer\n", ["lynx", "3d printer"]),
        ("c.txt", "hot dog", ["hot dog"]),
        ("c.json", '["lynx", "ibex"]', ["lynx", "ibex"]),
        ("c.json", '{"names": ["lynx", "ibex"]}', ["lynx", "ibex"]),
        ("c.yaml", "path: x\nnames:\n  0: lynx\n  1: ibex\n", ["lynx", "ibex"]),
        ("c.yaml", "names: [lynx, no]\n", ["lynx", "no"]),
        ("c.yml", "- lynx\n- ibex\n", ["lynx", "ibex"]),
    ],
)
def test_a_class_file_of_a_known_form_is_read(name: str, text: str, names: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert [one.strip() for one in read_class_file(tmp_path / name)] == names


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("c.txt", "1,lynx\n2,ibex\n", r"line 1 .*'1,lynx', holds more than one field; write one class name per line"),
        ("c.txt", "0: lynx\n1: ibex\n", "begins with a number"),
        ("c.txt", "1 lynx\n2 ibex\n", "begins with a number"),
        ("c.txt", "0\n1\n", "begins with a number"),
        ("c.txt", "names:\n- lynx\n- ibex\n", "is not a plain name"),
        ("c.txt", "[\n  'lynx',\n]", "is not a plain name"),
        ("c.txt", "lynx  # a cat\nibex\n", "is not a plain name"),
        ("c.txt", "lynx;ibex\nfox;wolf\n", "holds more than one field"),
        ("c.txt", "dog cat bird\n", "all in one line"),
        ("c.txt", "", "There is no class name in the file"),
        ("c.txt", "background\nlynx\n", "'background' .*never listed; leave it out"),
        ("c.csv", "id,x\n1,lynx\n2,ibex\n", "does not say which one holds the names"),
        ("c.csv", "lynx,brown\nibex,grey\n", "does not say which one holds the names"),
        ("c.csv", "name,id\nlynx\n", "has rows of 1 and of 2 columns"),
        ("c.json", '{"categories": [{"id": 1, "name": "lynx"}]}', "holds no list of names"),
        ("c.json", "[" * 100_000, "is no JSON"),
        ("c.json", "[1, 2]", "holds no list of names"),
        ("c.yaml", "names: {3: lynx, 9: ibex}\n", r"numbers its names \[3, 9\]"),
        ("c.yaml", "names: [lynx", "cannot read the class file"),
    ],
)
def test_a_class_file_whose_names_are_not_clear_is_refused(name: str, text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=told):
        parse_classes(str(tmp_path / name))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("dog\ncat", r"U\+000A"),
        ("dog,ca\tt", r"U\+0009"),
        ("dog,background", "'background'"),
        ("dog,__Background__", "'__Background__'"),
        ("dog,1", "has no letter"),
        ("lynx,\u200blynx", "holds an invisible character"),
        ("lynx," + "x" * 101, "is longer than 100 characters"),
        ("caf\u00e9,cafe\u0301", r"comes twice in --classes .* as 'caf\\xe9' and 'cafe\\u0301'"),
        ("lynx,Lynx", "comes twice"),
        ("\uff4cynx,lynx", "comes twice"),
        ('"lynx', "cannot be read"),
        ("x" * 5000 + "/", "There is no class file"),
        ("names.JSON", "There is no class file"),
        ("dog\x00cat", r"U\+0000"),
    ],
)
def test_names_that_cannot_be_told_apart_or_seen_are_refused(text: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        parse_classes(text)


def test_a_recipe_refuses_background_and_two_forms_of_one_name() -> None:
    for names in (["dog", "background"], ["caf\u00e9", unicodedata.normalize("NFD", "caf\u00e9")]):
        with pytest.raises(UserError, match=r"background|comes twice"):
            make_recipe({"n": 1, "classes": names})
    assert from_names(["Straße", "naïve"]).names == ("Straße", "naïve"), "names stay as they are given"
    assert voc().find("Potted_Plant") == voc().resolve("pottedplant")
    assert voc().find("unicorn") is None


@pytest.mark.parametrize("text", ["1:nan", "1:inf", "1:-1", "1:0.5,1:0.5", "1:", "x", "1:0.5;2:0.5", "", "1:1,,2:1"])
def test_objects_are_whole_numbers_with_finite_shares(text: str) -> None:
    with pytest.raises(UserError, match=r"--objects is number:share pairs such as"):
        parse_objects(text)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"objects": {1: float("nan")}}, "objects"),
        ({"objects": {1: float("inf")}}, "objects"),
        ({"engine": {"deadline": float("inf")}}, "deadline"),
        ({"n": True}, "n is no yes or no, got true"),
        ({"generator": {"steps": True}}, "steps is no yes or no"),
        ({"filters": {"min_area": False}}, "min_area is no yes or no"),
    ],
)
def test_a_recipes_numbers_are_numbers(data: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        make_recipe({"n": 1, "classes": ["dog"]} | data)
    assert make_recipe({"n": 1, "generator": {"compile": True}}).generator.compile


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"text":null,"classes":["dog"]}', "a JSON line is"),
        ('{"text":5,"classes":["dog"]}', "a JSON line is"),
        ('{"text":"a dog","classes":[null]}', "a JSON line is"),
        ('{"text":"a dog","classes":{"dog":null}}', "a JSON line is"),
        ('{"text":"a dog","classes":"dog"}', "a JSON line is"),
        ('{"text":"a dog","classes":["dog"],"seed":1}', "a JSON line is"),
        ('{"text":"a dog","text":"a cat","classes":["dog"]}', "'text' comes twice"),
        ('{"text":"a puppy and a hound","classes":{"dog":"puppy","dog":"hound"}}', "'dog' comes twice"),
        ('{"text":"a dog","classes":["dog","dog"]}', "the class 'dog' comes twice"),
        ('{"text":"a dog","classes":["dog","Dog"]}', "a prompt names a class once"),
        ('{"text":' + "[" * 100_000, "a JSON line is"),
        ("a puppy and a hound\tdog=puppy,dog=hound", "the class 'dog' comes twice; a prompt names a class once"),
        ("a puppy\tdog=", "dog= names no word of the text"),
        ("a dog", "a line is a text, a tab and its classes"),
        ("a dog\t,", "a prompt has a text and a class or more"),
    ],
)
def test_a_prompt_that_is_not_wholly_understood_is_refused(line: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(f"# mine\n{line}\n")
    with pytest.raises(UserError, match=f"p.jsonl, line 2: {told}"):
        read_prompts(tmp_path / "p.jsonl", coco())


def test_yaml_stays_as_written_and_cannot_grow() -> None:
    text = "a: {x: 2:1, y: 010, z: no, t: true, e: 1e-4, n: ~}\nb: &b {c: 1}\nd: {<<: *b, e: 2}\n"
    assert parse_plain_yaml(text, "x") == {
        "a": {"x": "2:1", "y": "010", "z": "no", "t": True, "e": "1e-4", "n": None},
        "b": {"c": "1"},
        "d": {"c": "1", "e": "2"},
    }
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 30))
    for bad, told in (
        (bomb, "its aliases stand for more than 200,000 values"),
        ("[" * 5000, "nested too deeply"),
        ("a: &a [*a]", "contains itself"),
        ("a: 1\na: 2\n", "line 2 gives 'a' a second time"),
        ("? [a]\n: b\n", "is no plain word"),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
    ):
        with pytest.raises(UserError, match=told):
            parse_plain_yaml(bad, "the job x")
