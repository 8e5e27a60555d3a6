"""Tokenizer files of a LLaMA-type checkpoint, trained in a second on a few lines."""

from __future__ import annotations

import io
import json
from pathlib import Path

import sentencepiece

from visionllm_edge.export.tokenizer import CONTROL_TOKENS

_LINES = [
    "A chat between a curious user and an artificial intelligence assistant.",
    "Can you analyze the image and identify the red circle, person present?",
    "Sure, here are results for a blue star and a green square.",
    "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 .,?!':-",
]


def write_tokenizer_files(folder: Path, *, leave_out: tuple[str, ...] = ()) -> int:
    """Write `tokenizer.model`, `added_tokens.json` and `tokenizer_config.json`.

    Args:
        folder: where to.
        leave_out: control tokens that shall be missing.

    Returns:
        The vocabulary size, control tokens included.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_LINES * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=380,
        byte_fallback=True,
        character_coverage=1.0,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    base = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()
    names = [name for name in CONTROL_TOKENS if name not in leave_out]
    added = {name: base + index for index, name in enumerate(names)}
    (folder / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")
    flags = {"lstrip": True, "rstrip": True, "normalized": False, "special": True}
    decoder = {str(number): {"content": name, **flags} for name, number in added.items()}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": decoder}),
        encoding="utf-8",
    )
    return base + len(names)
