"""The tokenizer of the embedded text-to-image model: CLIP's byte-level BPE, trained on the model's captions."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

from transformers import CLIPTokenizer

MAX_TOKENS = 24
_START, _END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(captions: Iterable[str]) -> CLIPTokenizer:
    """A CLIP tokenizer with one token for every word of `captions`; other text falls back to bytes.

    The same captions always give the same tokens. The trainer of `tokenizers` is not used because it breaks ties by the
    order of a hash map, which changes between runs, and weights depend on the token ids.
    """
    template = CLIPTokenizer().backend_tokenizer
    words: Counter[str] = Counter()
    for text in captions:
        words.update(
            word for word, _ in template.pre_tokenizer.pre_tokenize_str(template.normalizer.normalize_str(text))
        )
    merges = _merges(words)
    alphabet = byte_alphabet()
    pieces = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys([*pieces, _START, _END]))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def _merges(words: Counter[str]) -> list[tuple[str, str]]:
    """Byte-pair merges until every word is one piece: the most frequent pair first, ties in alphabetical order."""
    spelled = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in spelled.items():
            for pair in pairwise(pieces):
                pairs[pair] += words[word]
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelled = {word: _merged(pieces, best) for word, pieces in spelled.items()}


def _merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    result: list[str] = []
    for piece in pieces:
        # A piece that was just merged is longer than `pair[0]`, so it cannot be merged again.
        if result and (result[-1], piece) == pair:
            result[-1] += piece
        else:
            result.append(piece)
    return result


def byte_alphabet() -> list[str]:
    """The printable character for each of the 256 bytes, in GPT-2's order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + k) for k in range(len(others))]
