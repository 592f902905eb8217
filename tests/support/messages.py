"""Checks of error messages."""


def assert_one_sentence(error: BaseException) -> None:
    assert "\n" not in str(error)
    assert str(error).endswith(".")
    assert len(str(error)) < 700
