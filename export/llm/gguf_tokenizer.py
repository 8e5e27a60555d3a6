"""The tokenizer inside a GGUF file as content of a ``tokenizer.json``.

===============================  ==================================================================
``tokenizer.ggml.model``         what it becomes
===============================  ==================================================================
``llama``                        SentencePiece pieces with scores: byte-pair merges in their order
``gpt2``                         byte-level BPE with the file's merges; ``tokenizer.ggml.pre`` names
                                 how text is cut into words first
===============================  ==================================================================

Control tokens keep their ids and become special, user-defined ones are kept whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from visionllm_edge.export.llm.gguf_file import GgufWeights
from visionllm_edge.export.tokenizer import sentencepiece_bpe
from visionllm_edge.runtime.errors import CheckpointError, ConfigError

__all__ = ["GgufTokenizer", "read_gguf_tokenizer"]

_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How LLaMA 3 cuts text. Source: the model's ``tokenizer.json``."""


class _Kind(IntEnum):
    """``tokenizer.ggml.token_type``."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class GgufTokenizer:
    """What the header says.

    Attributes:
        definition: content of a ``tokenizer.json``.
        bos: id of BOS, if there is one.
        eos: id of EOS.
        add_bos: whether BOS is put first.
        space_after_control: whether a text after a control token gets the dummy prefix.
        chat_template: Jinja source, if there is one.
    """

    definition: str
    bos: int | None
    eos: int
    add_bos: bool
    space_after_control: bool
    chat_template: str | None


def read_gguf_tokenizer(file: GgufWeights) -> GgufTokenizer:
    """Convert.

    Raises:
        CheckpointError: a field is missing or does not fit the others, by name.
        ConfigError: a kind of tokenizer that is not supported, by name.
    """
    header = _Header(file)
    model = header.text("tokenizer.ggml.model")
    tokens = header.texts("tokenizer.ggml.tokens")
    kinds = header.numbers("tokenizer.ggml.token_type", len(tokens), default=_Kind.NORMAL)
    vocab = {token: number for number, token in enumerate(tokens)}
    if len(vocab) != len(tokens) or len(tokens) > file.config.vocab_size:
        raise header.wrong(
            "tokenizer.ggml.tokens",
            f"at most {file.config.vocab_size} different texts (rows of the embedding table)",
            f"{len(tokens)} with {len(tokens) - len(vocab)} repeated",
        )
    if model == "llama":
        prefix = header.flag("tokenizer.ggml.add_space_prefix", True)
        tokenizer = _pieces(header, tokens, kinds, vocab, prefix=prefix)
        bos, eos, add_bos = 1, 2, True
    elif model == "gpt2":
        prefix = False
        tokenizer, add_bos = _byte_level(header, vocab)
        bos, eos = None, None
    else:
        raise ConfigError(
            f"'{file.path.name}': tokenizer.ggml.model: expected 'llama' (SentencePiece) or "
            f"'gpt2' (byte-level BPE), got {model!r}."
        )
    for token, kind in zip(tokens, kinds, strict=True):
        if kind in (_Kind.CONTROL, _Kind.UNKNOWN):
            tokenizer.add_special_tokens([AddedToken(token, normalized=False)])
        elif kind == _Kind.USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, normalized=False)])
    end = header.token_id("tokenizer.ggml.eos_token_id", len(tokens), eos)
    if end is None:
        raise header.wrong("tokenizer.ggml.eos_token_id", "an id", "nothing")
    return GgufTokenizer(
        definition=tokenizer.to_str(),
        bos=header.token_id("tokenizer.ggml.bos_token_id", len(tokens), bos),
        eos=end,
        add_bos=header.flag("tokenizer.ggml.add_bos_token", add_bos),
        space_after_control=prefix,
        chat_template=file.metadata("tokenizer.chat_template"),
    )


def _pieces(
    header: _Header, tokens: list[str], kinds: list[Any], vocab: dict[str, int], *, prefix: bool
) -> tokenizers.Tokenizer:
    scores = header.numbers("tokenizer.ggml.scores", len(tokens))
    mergeable = [i for i, kind in enumerate(kinds) if kind in (_Kind.NORMAL, _Kind.USER_DEFINED)]
    mergeable.sort(key=lambda i: (-scores[i], i))
    ranks = {tokens[i]: rank for rank, i in enumerate(mergeable)}
    return sentencepiece_bpe(vocab, ranks, prefix=prefix)


def _byte_level(header: _Header, vocab: dict[str, int]) -> tuple[tokenizers.Tokenizer, bool]:
    """The tokenizer, and whether BOS is put first where the file does not say."""
    pairs = [merge.partition(" ") for merge in header.texts("tokenizer.ggml.merges")]
    merges = [(left, right) for left, _, right in pairs]
    name = header.text("tokenizer.ggml.pre")
    known = ("gpt-2", "smollm", "llama-bpe")
    if name not in known:
        raise ConfigError(
            f"'{header.file.path.name}': tokenizer.ggml.pre: expected one of {', '.join(known)}, "
            f"got {name!r}. How it cuts text into words is not known here."
        )
    llama3 = name == "llama-bpe"
    try:
        # A word that is a piece is taken whole by LLaMA 3, whether or not merges lead to it.
        tokenizer = tokenizers.Tokenizer(models.BPE(vocab, merges, ignore_merges=llama3))
    except Exception as e:  # the library raises bare Exception
        raise header.wrong("tokenizer.ggml.merges", "pairs of pieces", str(e)) from e
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not llama3)
    cut: list[Any] = []
    if llama3:
        cut = [pre_tokenizers.Split(Regex(_LLAMA3_WORDS), "isolated")]
    elif name == "smollm":
        cut = [pre_tokenizers.Digits(individual_digits=True)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cut, words]) if cut else words
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, llama3


@dataclass(frozen=True)
class _Header:
    """Typed access to the header; every complaint names the field."""

    file: GgufWeights

    def text(self, key: str) -> str:
        value = self.file.metadata(key)
        if not isinstance(value, str):
            raise self.wrong(key, "a text", value)
        return value

    def texts(self, key: str) -> list[str]:
        value = self.file.metadata(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(key, "a list of texts", type(value).__name__)
        return value

    def numbers(self, key: str, count: int, *, default: float | None = None) -> list[Any]:
        value = self.file.metadata(key)
        if value is None and default is not None:
            return [default] * count
        if not isinstance(value, list) or len(value) != count:
            got = f"{len(value)}" if isinstance(value, list) else type(value).__name__
            raise self.wrong(key, f"{count} numbers, one for each token", got)
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.file.metadata(key)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(key, "true or false", value)
        return default if value is None else value

    def token_id(self, key: str, count: int, default: int | None) -> int | None:
        value = self.file.metadata(key)
        value = default if value is None else value
        if value is not None and not (isinstance(value, int) and 0 <= value < count):
            raise self.wrong(key, f"an id below {count}", value)
        return value

    def wrong(self, key: str, expected: str, got: object) -> CheckpointError:
        shown = "nothing" if got is None else got
        return CheckpointError(
            f"'{self.file.path.name}': {key}: expected {expected}, got {shown}. "
            "Convert the model to GGUF again."
        )
