"""The key of a sample, defined once: who writes one and who reads one made elsewhere both come here."""

import re

PATTERN = "[0-9]{9}"
"""A sample's index in nine digits. A key becomes a file's name in exports, so nothing else is ever accepted as one."""
_MEMBER = re.compile(rf"({PATTERN})\.([A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*)")


def key_of(index: int) -> str:
    """The key of the sample with this index."""
    return f"{index:09d}"


def check_key(key: object) -> str:
    """The key itself; ValueError where it is none."""
    if not isinstance(key, str) or not re.fullmatch(PATTERN, key):
        raise ValueError(f"{str(key)[:60]!r} is no key of a sample; a key is nine digits")
    return key


def split_member(name: str) -> tuple[str, str]:
    """(key, suffix) of a tar member such as "000000001.seg.png"; ValueError for any other name."""
    found = _MEMBER.fullmatch(name)
    if found is None:
        raise ValueError(f"{name[:60]!r} is no member of a sample; members are named by a key of nine digits, as "
                         f"000000001.jpg")  # fmt: skip
    return found[1], found[2]
