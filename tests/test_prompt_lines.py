"""Lines of a language model: what is accepted as a prompt, and where it is in an answer."""

import pytest

from factory.config.vocabulary import coco, from_names
from factory.prompts.check import LineCheck, few_words
from factory.prompts.instructions import prompt_in


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog next to two cats.", ("dog", "cats")),
        ("A dog and a cat.", ("dog", "cat")),
        ("", "empty"),
        ("A dog.", "class_missing"),
        ("A puppy and a cat.", "class_missing"),
        ("A dog, a cat and another dog.", "class_repeated"),
        ("A dog, a cat and a puppy.", "class_repeated"),
        ("A dog and a cat on a sofa.", "other_class"),
        ("A dog and a cat beside a man.", "other_class"),
        (f"A dog and a cat {'very ' * 45}far away.", "too_long"),
        ("a dog  and a CAT", "duplicate"),
    ],
)
def test_lines_are_checked(text: str, expected: object) -> None:
    check = LineCheck(coco(), few_words)
    check.accept("A dog and a cat.") if expected == "duplicate" else None
    result = check.check(text, ["dog", "cat"])
    assert (result if isinstance(result, str) else result.phrases) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("An old bow (weapon) on a wall.", "accepted"),
        ("An old Bow_(weapon) on a wall.", "accepted"),
        ("A bow, a weapon on a wall.", "class_missing"),
        ("A bow (weapon) beside a coffee, black as night.", "other_class"),
    ],
)
def test_names_with_brackets_and_commas_are_found(text: str, expected: str) -> None:
    """Lists such as that of LVIS distinguish classes by a word in brackets; every line was rejected."""
    vocabulary = from_names(["bow (weapon)", "bow (ribbon)", "coffee, black"])
    result = LineCheck(vocabulary, few_words).check(text, ["bow (weapon)"])
    assert (result if isinstance(result, str) else "accepted") == expected


@pytest.mark.parametrize(
    "answer",
    [
        "A dog.",
        '"A dog."',
        "Prompt: A dog.",
        "\n\n**Prompt:** A dog.\nThis shows ...",
        "<think>\na cat\n</think>\n1. A dog.",
    ],
)
def test_the_prompt_is_found_in_an_answer(answer: str) -> None:
    assert prompt_in(answer) == "A dog."


def test_reasoning_that_does_not_end_is_no_prompt() -> None:
    assert prompt_in("<think>Okay, the user wants a prompt that shows a dog.") == ""


def test_a_prompt_may_begin_with_a_number() -> None:
    assert prompt_in("35 mm photograph of a dog") == "35 mm photograph of a dog"
