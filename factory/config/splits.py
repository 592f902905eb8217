"""The value of the option `--split`: the name of a split, or a file with one unseen class per line."""

from factory.config.vocabulary import Vocabulary
from factory.errors import UserError
from factory.files.paths import expanded
from factory.files.text import read_lines


def split_name(split: str) -> str:
    """The name of a split: that of a file, without folder and suffix."""
    path = expanded(split)
    return path.stem if path.is_file() else split


def unseen_classes(vocabulary: Vocabulary, split: str) -> tuple[str, ...]:
    """The unseen classes of a split. UserError if there is no such split, or if no class is seen or unseen."""
    path = expanded(split)
    if not path.is_file():
        if "/" in split or path.suffix:
            raise UserError(
                f"there is no split file {split}; give a file with one unseen class per line, or the name of a split."
            )
        return vocabulary.unseen(split)
    lines = [(number, line) for number, line in read_lines(path, "split file") if not line.startswith("#")]
    named = {vocabulary.resolve(line, f"{split}, line {number}").name for number, line in lines}
    unseen = tuple(name for name in vocabulary.names if name in named)
    if not unseen or len(unseen) == len(vocabulary.names):
        raise UserError(
            f"the split file {split} leaves {len(vocabulary.names) - len(unseen)} classes seen and {len(unseen)} "
            f"unseen; at least one of each is required."
        )
    return unseen


def seen_classes(vocabulary: Vocabulary, split: str) -> tuple[str, ...]:
    """The other classes, in the order of the vocabulary; see `unseen_classes`."""
    unseen = unseen_classes(vocabulary, split)
    return tuple(name for name in vocabulary.names if name not in unseen)
