"""YAML of large files is read by libyaml, with the same values and the same errors."""

import pytest

from factory.config.recipe import make_recipe
from factory.errors import UserError
from factory.files import strict_yaml
from factory.files.strict_yaml import parse_plain_yaml, parse_yaml

PROMPTS = [{"text": f"a 'photo': \"of\" dog {number}, é 漢 😀 # x", "classes": {"dog": "dog"}} for number in range(3)]
TEXTS = [
    make_recipe({"classes": ["dog", "cat"], "n": 3, "prompts": PROMPTS}).to_yaml(),
    "a: 1\nb: [x, 'y', \"z\\n\", {k: v}]\nc: |\n  text\n  more\nd: >-\n  folded\n  text\ne: &x {q: 1.5}\nf: *x\n",
    "h:\n- 1\n- -2\n- ~\n- null\n- .5\n- 12e45\n- 010\n- yes\n- 2:1\n- true\n",
    "? a\n: b\n'quo ''ted': plain text\n  continued\nm:\n  <<: {a: 1}\n  b: 2\n",
    "", "# only a comment\n", "--- text\n...\n", "a: 1\n---\nb: 2\n", "a: !!python/object:os.system x\n", "a: [1\n",
    "a: 1\na: 2\n", "true: 1\n", "a: &a [*a]\n", "a:\t1\n", "a: 1\n\ufeff b\n", "n: !!int ''\n", "%YAML 1.3\n--- a\n",
    "a: " + "[" * 1000, "- " * 1000 + "a", "a\x00b", "\ud800",
]  # fmt: skip


def result(text: str, typed: bool) -> object:
    try:
        return repr((parse_yaml if typed else parse_plain_yaml)(text, "the file"))
    except UserError as error:
        return f"error: {error}"


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_libyaml_reads_the_same(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = [result(text, typed) for typed in (True, False)]
    monkeypatch.setattr(strict_yaml, "_LARGE", 0)
    assert [result(text, typed) for typed in (True, False)] == slow


def test_large_recipe_is_read_by_libyaml(monkeypatch: pytest.MonkeyPatch) -> None:
    """200,000 prompts take seconds instead of 40 s."""
    text = make_recipe({"classes": ["dog"], "n": 3, "prompts": PROMPTS * 400}).to_yaml()
    expected = strict_yaml._construct(text, "the file", strict_yaml._TypedLoader)
    monkeypatch.delattr("yaml.scanner.Scanner.fetch_more_tokens")
    assert parse_yaml(text, "the file") == expected


def test_a_message_does_not_quote_the_file_which_may_contain_the_url_of_a_webhook() -> None:
    with pytest.raises(UserError) as raised:
        parse_plain_yaml("notify:\n  - {on: failure, webhook: https://host/secret\n", "the configuration")
    assert "secret" not in str(raised.value)
    assert "line 3, column 1, while parsing a flow mapping from line 2: expected ',' or '}'" in str(raised.value)
