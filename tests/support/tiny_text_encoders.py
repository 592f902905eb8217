"""Tokenizers and text encoders of the families: the real classes, with few words and random weights."""

from itertools import chain
from typing import Any

import transformers

from factory.config.vocabulary import caption, coco
from factory.stickers.tokens import byte_alphabet

_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WIDTH, HEADS = 32, 2


def words() -> list[str]:
    """The words of the captions of COCO's classes."""
    return sorted(set(chain.from_iterable(caption([name]).split() for name in coco().names)))


def t5_tokenizer() -> Any:
    """One token for every word of the captions."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -3.0) for word in words()] + [(letter, -9.0) for letter in "abcdefghijklmnopqrstuvwxyz,."]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0)


def gemma_tokenizer() -> Any:
    """Single letters, and bytes for what is none."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = transformers.GemmaTokenizer(vocab={piece: k for k, piece in enumerate(pieces)}, add_bos_token=True)
    return tokenizer


def qwen_tokenizer() -> Any:
    """Bytes, words with their space, and a template for chats."""
    alphabet = byte_alphabet()
    merges: dict[tuple[str, str], None] = {}
    vocabulary = dict.fromkeys(alphabet)
    for word in words():
        piece = "Ġ"
        for letter in word:
            merges[piece, letter] = None
            piece += letter
            vocabulary[piece] = None
    ids = {piece: number for number, piece in enumerate([*vocabulary, "<|endoftext|>"])}
    tokenizer = transformers.Qwen2Tokenizer(vocab=ids, merges=list(merges), model_max_length=2048)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = _CHAT
    return tokenizer


def t5_encoder(tokenizer: Any) -> Any:
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=WIDTH, d_kv=8, d_ff=WIDTH, num_layers=1, num_heads=HEADS
    )
    return transformers.T5EncoderModel(config).eval()


def qwen_encoder(tokenizer: Any, kind: str = "Qwen3Model", layers: int = 2) -> Any:
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        head_dim=8,
    )
    return getattr(transformers, kind)(config).eval()
