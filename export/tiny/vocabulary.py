"""The tiny checkpoint's tokenizer: a real SentencePiece BPE model and the 26 special tokens.

Byte fallback keeps every text representable. The files are those of a LLaMA-type checkpoint:
``tokenizer.model``, ``tokenizer.json``, ``tokenizer_config.json``, ``added_tokens.json``,
``special_tokens_map.json``.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import sentencepiece
import tokenizers
from tokenizers import AddedToken

from visionllm_edge.runtime import prompts
from visionllm_edge.runtime import shapes_world as world

__all__ = ["PIECES", "SPECIAL_TOKENS", "write_tokenizer"]

PIECES = 640

SPECIAL_TOKENS = (
    "[PAD]", "<image>", "<im_patch>", "<region>", "<img>", "</img>", "<reg>", "</reg>",
    "<det>", "</det>", "<grd>", "</grd>", "[DET]", "[GRD]", "[SEG]", "[POSE]", "[GEN]", "[EDIT]",
    "[EMB]", "[EMB2]", "[EMB3]", "[EMB4]", "[EMB5]", "[EMB6]", "[EMB7]", "[EMB8]",
)  # fmt: skip
"""In the order of the official vocabulary; ids follow the SentencePiece vocabulary."""


def write_tokenizer(folder: Path, *, seed: int = 0) -> int:
    """Train the vocabulary on the shapes world's sentences and write all files.

    Returns:
        The vocabulary size, special tokens included.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_corpus(seed)),
        model_writer=model,
        model_type="bpe",
        vocab_size=PIECES,
        byte_fallback=True,
        character_coverage=1.0,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    base = processor.get_piece_size()
    added = {name: base + i for i, name in enumerate(SPECIAL_TOKENS)}
    _fast_tokenizer(processor).save(str(folder / "tokenizer.json"))
    flags = {"lstrip": True, "rstrip": True, "normalized": False, "special": True}
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "special": True}
    decoder = {
        str(i): {"content": name, "single_word": False, **plain}
        for i, name in enumerate(("<unk>", "<s>", "</s>"))
    }
    decoder |= {
        str(i): {"content": name, "single_word": False, **flags} for name, i in added.items()
    }
    _write(folder / "added_tokens.json", added)
    _write(
        folder / "special_tokens_map.json",
        {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<unk>",
            "additional_special_tokens": list(SPECIAL_TOKENS),
        },
    )
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "LlamaTokenizer",
            "legacy": False,
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<unk>",
            "model_max_length": 1024,
            "added_tokens_decoder": decoder,
        },
    )
    return base + len(SPECIAL_TOKENS)


def _fast_tokenizer(processor: sentencepiece.SentencePieceProcessor) -> tokenizers.Tokenizer:
    """The same BPE as a ``tokenizers`` object; merges are ranked as SentencePiece ranks pieces."""
    vocab = {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
    merges = []
    for piece, rank in vocab.items():
        splits = [
            (vocab[piece[:k]], vocab[piece[k:]], piece[:k], piece[k:])
            for k in range(1, len(piece))
            if piece[:k] in vocab and piece[k:] in vocab
        ]
        merges += [(rank, *split) for split in splits if not processor.is_byte(rank)]
    merges.sort()
    model = tokenizers.models.BPE(
        vocab,
        [(left, right) for *_, left, right in merges],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    fast = tokenizers.Tokenizer(model)
    # Not the Metaspace pre-tokenizer: it leaves the prefix out where a text begins with a blank.
    fast.normalizer = tokenizers.normalizers.Sequence(
        [
            tokenizers.normalizers.Prepend("\N{LOWER ONE EIGHTH BLOCK}"),
            tokenizers.normalizers.Replace(" ", "\N{LOWER ONE EIGHTH BLOCK}"),
        ]
    )
    fast.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("\N{LOWER ONE EIGHTH BLOCK}", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    fast.add_special_tokens(
        [AddedToken(t, normalized=False, special=True) for t in ("<unk>", "<s>", "</s>")]
    )
    fast.add_special_tokens(
        [
            AddedToken(t, lstrip=True, rstrip=True, normalized=False, special=True)
            for t in SPECIAL_TOKENS
        ]
    )
    fast.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return fast


def _corpus(seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(600):
        scene = world.make_scene(rng, width=64, height=64)
        names = world.class_names(scene, rng, 4, kind="mixed")
        listed = ", ".join(names)
        lines.append(world.caption(scene))
        lines += [f"{q.text} {prompts.SHORT_ANSWER}" for q in world.questions(scene, rng, 3)]
        lines += [q.answer for q in world.questions(scene, rng, 3)]
        lines += [q.format(classes=listed) for q in prompts.DETECTION_QUESTIONS]
        lines += [q.format(classes=listed) for q in prompts.SEGMENTATION_QUESTIONS]
        lines += [q.format(expression=names[0]) for q in prompts.GROUNDING_QUESTIONS]
        lines += list(prompts.CAPTION_QUESTIONS)
        texts = [s.text for s in prompts.scripted_answer(names) if isinstance(s, prompts.Text)]
        lines.append("".join(texts))
        turn = prompts.Turn("", ())
        parts = prompts.conversation([turn], image=True)
        lines += [s.text.strip("\n") for s in parts if isinstance(s, prompts.Text)]
    # Ordinary text, so that letters and digits are pieces of their own.
    letters = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    lines += [f"{letters} 0 1 2 3 4 5 6 7 8 9 . , ? ! ' - :"] * 5
    return lines


def _write(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
