"""Text files from users: class lists, prompts and splits in many encodings and formats."""

import codecs
import unicodedata
from pathlib import Path

import pytest

from factory.cli.options import assemble
from factory.config.class_file import read_class_file
from factory.config.class_option import parse_classes
from factory.config.object_counts import parse_objects
from factory.config.prompts import read_prompts
from factory.config.recipe import make_recipe
from factory.config.vocabulary import coco, from_names, voc
from factory.errors import UserError
from factory.files.strict_yaml import parse_plain_yaml
from factory.files.text import MAX_TEXT_BYTES, read_bytes, read_lines, read_text

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
def test_encodings_give_the_same_classes_prompts_and_splits(name: str, tmp_path: Path) -> None:
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
    ("data", "message"),
    [
        (b"\x89PNG\r\n\x1a\n\x00\x00", "cannot be read .*save it as UTF-8"),
        (b"d\x00o\x00g\x00", r"line 1 contains the control character U\+0000"),
        (b"\xff\xfe\x00dog\x00", "cannot be read"),
        (b"dog\n\ncat\x1b[2J\n", r"line 3 contains the control character U\+001B"),
    ],
)
def test_non_text_file_is_rejected(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_text(tmp_path / "x.txt", "class file")


def test_too_large_or_irregular_file_is_rejected_before_reading(tmp_path: Path) -> None:
    with (tmp_path / "huge.txt").open("wb") as stream:
        stream.truncate(MAX_TEXT_BYTES * 1000)  # sparse: no content on disk
    for path, message in (
        (tmp_path / "huge.txt", "has more than the limit of 67,108,864 bytes"),
        (tmp_path, "it is not a regular file"),
    ):
        with pytest.raises(UserError, match=message):
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
        ("c.csv", 'id,name\n1,"coffee, black"\n2,C#\n', ["coffee, black", "C#"]),
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
def test_class_file_formats(name: str, text: str, names: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert [class_name.strip() for class_name in read_class_file(tmp_path / name)] == names


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "c.txt",
            "1,lynx\n2,ibex\n",
            r"line 1 .*'1,lynx', contains more than one field; write one class name per line",
        ),
        ("c.txt", "0: lynx\n1: ibex\n", "begins with a number"),
        ("c.txt", "1 lynx\n2 ibex\n", "begins with a number"),
        ("c.txt", "0\n1\n", "begins with a number"),
        ("c.txt", "names:\n- lynx\n- ibex\n", "is not a plain name"),
        ("c.txt", "[\n  'lynx',\n]", "is not a plain name"),
        ("c.txt", "lynx  # a cat\nibex\n", "is not a plain name"),
        ("c.txt", "lynx;ibex\nfox;wolf\n", "contains more than one field"),
        ("c.txt", "dog cat bird\n", "has all names on one line"),
        ("c.txt", "", "there is no class name in the file"),
        ("c.txt", "background\nlynx\n", "'background' .*must not be listed; remove it"),
        ("c.csv", "id,x\n1,lynx\n2,ibex\n", "it is unclear which one contains the names"),
        ("c.csv", "lynx,brown\nibex,grey\n", "it is unclear which one contains the names"),
        ("c.csv", "name,id\nlynx\n", "has rows of 1 and 2 columns"),
        ("c.csv", "id;name\n1;lynx\n2;ibex\n", r"line 1 .*'id;name', contains more than one field"),
        ("c.csv", "id\tname\n1\tlynx\n2\tibex\n", "contains more than one field"),
        ("c.csv", "lynx|1\nibex|2\n", "contains more than one field"),
        ("c.csv", "name\n1: lynx\n2: ibex\n", r"line 2 .*'1: lynx', begins with a number"),
        ("c.csv", "1 lynx\n2 ibex\n", "begins with a number"),
        ("c.csv", "id,name\n0,lynx\n1,\n2,ibex\n", "line 3 of the class file .* has no name"),
        ("c.tsv", "id,name\n1,lynx\n2,ibex\n", "contains more than one field"),
        ("c.txt", "[lynx, ibex]\n", r"line 1 .*'\[lynx', is not a plain name"),
        ("c.txt", "names: [lynx, ibex]\n", "is not a plain name"),
        ("c.txt", "0: lynx, 1: ibex\n", "begins with a number"),
        ("c.txt", "lynx; ibex, kudu\n", "contains more than one field"),
        ("c.yaml", "names: {0: lynx, 1: '', 2: ibex}\n", "contains an empty name"),
        ("c.csv", 'name\n"lynx\nibex\nkudu\n', "is not a valid table"),
        ("c.csv", 'name\n"lynx\nibex"\nkudu\n', "is not a valid table"),
        ("c.txt", 'lynx,"ibex,kudu\n', "is not a valid list"),
        ("c.json", '{"0": "lynx", "0": "ibex"}', "the key '0' is repeated"),
        ("c.json", '{"names": ["lynx"], "names": ["ibex"]}', "the key 'names' is repeated"),
        ("c.json", '{"categories": [{"id": 1, "name": "lynx"}]}', "does not contain a list of names"),
        ("c.json", "[" * 100_000, "is not valid JSON"),
        ("c.json", "[1, 2]", "does not contain a list of names"),
        ("c.json", "[dog]", r'is not valid JSON \(.*\); write \["dog", "cat"\]'),
        ("c.yaml", "names: {3: lynx, 9: ibex}\n", r"numbers its names \[3, 9\]"),
        ("c.yaml", "names: [lynx", "cannot parse the class file"),
        ("c.yaml", "names: {first: lynx}", "must number its names 0, 1, 2"),
    ],
)
def test_ambiguous_class_file_is_rejected(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        parse_classes(str(tmp_path / name))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dog\ncat", r"U\+000A"),
        ("dog,ca\tt", r"U\+0009"),
        ("dog,background", "'background'"),
        ("dog,__Background__", "'__Background__'"),
        ("dog,1", "has no letter"),
        ("dog;cat", r"'dog;cat' in --classes .* contains more than one field; give comma-separated names"),
        ("['dog', 'cat']", "is not a plain name"),
        ("0:dog,1:cat", "begins with a number"),
        ("lynx,\u200blynx", "contains an invisible character"),
        ("lynx," + "x" * 101, "is longer than 100 characters"),
        ("caf\u00e9,cafe\u0301", r"is repeated in --classes .* as 'caf\\xe9' and 'cafe\\u0301'"),
        ("lynx,Lynx", "is repeated"),
        ("\uff4cynx,lynx", "is repeated"),
        ('"lynx', "cannot be parsed"),
        ("x" * 5000 + "/", "there is no class file"),
        ("names.JSON", "there is no class file"),
        ("dog\x00cat", r"U\+0000"),
        ("dog\ufffecat", r"U\+FFFE"),
    ],
)
def test_ambiguous_or_invisible_names_are_rejected(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_classes(text)


def test_recipe_rejects_background_and_unicode_duplicates() -> None:
    for names in (["dog", "background"], ["caf\u00e9", unicodedata.normalize("NFD", "caf\u00e9")]):
        with pytest.raises(UserError, match=r"background|is repeated"):
            make_recipe({"n": 1, "classes": names})
    assert from_names(["Straße", "naïve"]).names == ("Straße", "naïve"), "names are kept as given"
    assert voc().find("Potted_Plant") == voc().resolve("pottedplant")
    assert voc().find("unicorn") is None


@pytest.mark.parametrize(
    "text", ["1:nan", "1:inf", "1:-1", "1:0.5,1:0.5", "1:", "x", "1:0.5;2:0.5", "", "1:1,,2:1", "1:0.5,2"]
)
def test_invalid_objects_option_is_rejected(text: str) -> None:
    with pytest.raises(UserError, match=r"--objects requires number:share pairs such as"):
        parse_objects(text)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"objects": {1: float("nan")}}, "objects"),
        ({"objects": {1: float("inf")}}, "objects"),
        ({"engine": {"deadline": float("inf")}}, "deadline"),
        ({"n": True}, "n must not be a boolean, got true"),
        ({"generator": {"steps": True}}, "steps must not be a boolean"),
        ({"filters": {"min_area": False}}, "min_area must not be a boolean"),
    ],
)
def test_recipe_rejects_booleans_and_non_finite_numbers(data: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_recipe({"n": 1, "classes": ["dog"]} | data)
    assert make_recipe({"n": 1, "generator": {"compile": True}}).generator.compile


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text":null,"classes":["dog"]}', "a JSON line must be"),
        ('{"text":5,"classes":["dog"]}', "a JSON line must be"),
        ('{"text":"a dog","classes":[null]}', "a JSON line must be"),
        ('{"text":"a dog","classes":{"dog":null}}', "a JSON line must be"),
        ('{"text":"a dog","classes":"dog"}', "a JSON line must be"),
        ('{"text":"a dog","classes":["dog"],"seed":1}', "a JSON line must be"),
        ('{"text":"a dog","text":"a cat","classes":["dog"]}', "the JSON object contains the key 'text' twice"),
        (
            '{"text":"a puppy and a hound","classes":{"dog":"puppy","dog":"hound"}}',
            "the JSON object contains the key 'dog' twice",
        ),
        ('{"text":"a dog","classes":["dog","dog"]}', "the class 'dog' is repeated"),
        ('{"text":"a dog","classes":["dog","Dog"]}', "a prompt must name each class once"),
        ('{"text":' + "[" * 100_000, "a JSON line must be"),
        ("a puppy and a hound\tdog=puppy,dog=hound", "the class 'dog' is repeated; a prompt must name each class once"),
        ("a puppy\tdog=", "dog= has no phrase"),
        ("a dog", "a line must be a text, a tab and comma-separated classes"),
        ("a dog\t,", "a prompt requires a text and at least one class"),
    ],
)
def test_invalid_prompt_line_is_rejected(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(f"# mine\n{line}\n")
    with pytest.raises(UserError, match=f"p.jsonl, line 2: {message}"):
        read_prompts(tmp_path / "p.jsonl", coco())


def test_yaml_keeps_scalars_as_text_and_limits_aliases() -> None:
    text = "a: {x: 2:1, y: 010, z: no, t: true, e: 1e-4, n: ~}\nb: &b {c: 1}\nd: {<<: *b, e: 2}\n"
    assert parse_plain_yaml(text, "x") == {
        "a": {"x": "2:1", "y": "010", "z": "no", "t": True, "e": "1e-4", "n": None},
        "b": {"c": "1"},
        "d": {"c": "1", "e": "2"},
    }
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 30))
    for bad, message in (
        (bomb, "its aliases expand to more than 200,000 values"),
        ("[" * 5000, "nested too deeply"),
        ("a: &a [*a]", "contains itself"),
        ("a: 1\na: 2\n", "line 2 repeats the key 'a'"),
        ("? [a]\n: b\n", "is not a plain string"),
        ("true: 1\n", "key on line 1 is not a plain string"),
        ("a: 1\n~: 2\n", "key on line 2 is not a plain string"),
        ("!!python/object/apply:os.system ['true']", "the tag !!python/object/apply:os.system on line 1"),
        ("- a\n- !!set {dog, cat}", "the tag !!set on line 2 is not supported; remove it"),
    ):
        with pytest.raises(UserError, match=message):
            parse_plain_yaml(bad, "the job x")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="a file of unknown size is needed")
def test_file_whose_size_is_reported_as_0_is_read_completely() -> None:
    assert Path("/proc/self/status").stat().st_size == 0
    assert any(line.startswith("VmPeak") for _, line in read_lines("/proc/self/status", "class file"))
    with pytest.raises(UserError, match="has more than the limit of 10 bytes"):
        read_bytes("/proc/self/status", "class file", 10)
