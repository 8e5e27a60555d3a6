"""Tokenizer files of the official kind with a made-up vocabulary.

``tokenizer.model`` is a SentencePiece model as LLaMA's is: control pieces, one piece a byte and a
character, and words that no text contains to fill the vocabulary. Beside it lie
``added_tokens.json``, ``tokenizer_config.json`` and ``special_tokens_map.json``.
"""

from __future__ import annotations

import json
from pathlib import Path

from visionllm_edge.export.tokenizer import CONTROL_TOKENS

__all__ = ["write_random_tokenizer"]

_CONTROLS = ("<s>", "</s>")
_SPACE = "▁"
_CHARACTERS = (_SPACE, *(chr(code) for code in range(33, 127)))
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_BPE = 2  # of the enumeration in SentencePiece's model format


def write_random_tokenizer(folder: Path, *, vocab_size: int) -> None:
    """Write the four files.

    Args:
        folder: where to; must exist.
        vocab_size: of the model, the control tokens of VisionLLM v2 included.
    """
    pieces = vocab_size - len(CONTROL_TOKENS)
    (folder / "tokenizer.model").write_bytes(_model(pieces))
    added = {name: pieces + index for index, name in enumerate(CONTROL_TOKENS)}
    flags = {"lstrip": True, "rstrip": True, "normalized": False, "special": True}
    base = {"lstrip": False, "rstrip": False, "normalized": False, "special": True}
    decoder = {
        **{str(i): {"content": name, **base} for i, name in enumerate(("<unk>", *_CONTROLS))},
        **{str(number): {"content": name, **flags} for name, number in added.items()},
    }
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"}
    config = {
        **special,
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "model_max_length": 4096,
        "padding_side": "right",
        "additional_special_tokens": list(CONTROL_TOKENS),
        "added_tokens_decoder": decoder,
    }
    everything = {"<unk>": 0, "<s>": 1, "</s>": 2, **added}
    for name, content in (
        ("added_tokens.json", everything),
        ("special_tokens_map.json", special),
        ("tokenizer_config.json", config),
    ):
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


def _model(size: int) -> bytes:
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made at run time
    kinds = model.SentencePiece

    def add(piece: str, kind: int, score: float = 0.0) -> None:
        model.pieces.add(piece=piece, type=kind, score=score)

    add("<unk>", kinds.UNKNOWN)
    for control in _CONTROLS:
        add(control, kinds.CONTROL)
    for byte in range(256):
        add(f"<0x{byte:02X}>", kinds.BYTE)
    first = len(model.pieces)
    assert size >= first + len(_CHARACTERS), "the vocabulary must hold every byte and character"
    for character in _CHARACTERS:
        add(character, kinds.NORMAL, float(first - len(model.pieces)))
    for number in range(size - len(model.pieces)):
        add(_word(number), kinds.NORMAL, float(first - len(model.pieces)))
    model.trainer_spec.model_type = _BPE
    model.trainer_spec.vocab_size = size
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.unk_id, model.trainer_spec.bos_id, model.trainer_spec.eos_id = 0, 1, 2
    model.trainer_spec.pad_id = -1
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    content: bytes = model.SerializeToString()
    return content


def _word(number: int) -> str:
    """A different word for every number; no shorter word begins or ends it."""
    word = ""
    for _ in range(4):
        number, digit = divmod(number, len(_LETTERS))
        word += _LETTERS[digit]
    return f"{_SPACE}{word}zzz"
