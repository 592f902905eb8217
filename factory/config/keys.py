"""Sample keys: the single definition used for writing keys and for validating keys from other sources."""

import re

PATTERN = "[0-9]{9}"
"""A sample's index as nine digits. Exports use keys as file names, so nothing else is accepted."""
_MEMBER = re.compile(rf"({PATTERN})\.([A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*)")


def key_of(index: int) -> str:
    """The key of the sample with this index."""
    return f"{index:09d}"


def check_key(key: object) -> str:
    """Return the key; raises ValueError if it is not one."""
    if not isinstance(key, str) or not re.fullmatch(PATTERN, key):
        raise ValueError(f"{str(key)[:60]!r} is not a sample key; a key has nine digits")
    return key


def split_member(name: str) -> tuple[str, str]:
    """Split a tar member name such as "000000001.seg.png" into (key, suffix); raises ValueError for other names."""
    found = _MEMBER.fullmatch(name)
    if found is None:
        raise ValueError(
            f"{name[:60]!r} is not a sample member; member names start with a key of nine digits, such as 000000001.jpg"
        )
    return found[1], found[2]
