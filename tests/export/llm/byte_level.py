"""A small byte-level BPE tokenizer, trained on a few lines, as a file or GGUF fields."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

__all__ = ["CONTROLS", "byte_level", "byte_level_fields", "write_byte_level"]

CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_LINES = [
    "The quick brown fox doesn't see 1234 lazy dogs; they're asleep.",
    "Naïve cafés — 猫と犬 🙂 in 2024 and 2025!",
    "    indented = code(lines)\n\tand tabs\r\n\n",
]
_WORDS = {
    "gpt-2": None,
    "smollm": pre_tokenizers.Digits(individual_digits=True),
    "llama-bpe": pre_tokenizers.Split(
        Regex(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        "isolated",
    ),
}


def byte_level(words: str = "smollm") -> tokenizers.Tokenizer:
    """Control tokens first, as SmolLM2 has them, then bytes and merges."""
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=words == "llama-bpe"))
    first = _WORDS[words]
    rest = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words != "llama-bpe")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, rest]) if first else rest
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[AddedToken(name, normalized=False) for name in CONTROLS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_LINES * 5, trainer)
    return tokenizer


def byte_level_fields(tokenizer: tokenizers.Tokenizer, words: str = "smollm") -> dict[str, object]:
    """Header fields of a GGUF file."""
    size = tokenizer.get_vocab_size()
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": words,
        "tokenizer.ggml.tokens": [tokenizer.id_to_token(i) for i in range(size)],
        "tokenizer.ggml.token_type": [3 if i < len(CONTROLS) else 1 for i in range(size)],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
    }


def write_byte_level(folder: Path, tokenizer: tokenizers.Tokenizer, **settings: object) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
