"""The checkpoint's tokenizer as one `tokenizer.json`, and the ids that the runtime writes itself.

A `tokenizer.json` in the checkpoint is taken as it is. Otherwise the SentencePiece model is
converted (byte-pair merges ranked as its pieces are) and the added tokens get their ids and flags
from `added_tokens.json` and `tokenizer_config.json`. Ids are always found by name: a checkpoint
that lacks one of the 26 control tokens is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from visionllm_edge.runtime.errors import CheckpointError

__all__ = [
    "CONTROL_TOKENS",
    "ConvertedTokenizer",
    "checked_definition",
    "convert_tokenizer",
    "read_settings",
    "sentencepiece_bpe",
    "sentencepiece_definition",
]

CONTROL_TOKENS = (
    "[PAD]", "<image>", "<im_patch>", "<region>", "<img>", "</img>", "<reg>", "</reg>",
    "<det>", "</det>", "<grd>", "</grd>", "[DET]", "[GRD]", "[SEG]", "[POSE]", "[GEN]", "[EDIT]",
    "[EMB]", "[EMB2]", "[EMB3]", "[EMB4]", "[EMB5]", "[EMB6]", "[EMB7]", "[EMB8]",
)  # fmt: skip
"""In the order of the official vocabulary."""

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
# The markers of a super-link group are written as a run of ids.
_CONSECUTIVE = ("[EMB]", "[EMB2]", "[EMB3]", "[EMB4]")


@dataclass(frozen=True)
class ConvertedTokenizer:
    """What a bundle needs of a tokenizer.

    Attributes:
        definition: content of `tokenizer.json`.
        controls: id of every control token by name.
        bos: id put first; None where nothing is.
        eos: id that ends an answer.
        space_after_control: whether a text after a control token gets the dummy prefix (the
            `legacy` behaviour of LLaMA's slow tokenizer).
    """

    definition: str
    controls: Mapping[str, int]
    bos: int | None
    eos: int
    space_after_control: bool


def convert_tokenizer(folder: Path, *, vocab_size: int) -> ConvertedTokenizer:
    """Read the tokenizer files of a checkpoint folder.

    Args:
        folder: the checkpoint.
        vocab_size: rows of the embedding table; every id must be below it.

    Raises:
        CheckpointError: no tokenizer, an unreadable one, a missing control token, or ids that do
            not fit the model.
    """
    settings = read_settings(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").is_file():
        definition = checked_definition(folder / "tokenizer.json")
    elif (folder / "tokenizer.model").is_file():
        definition = sentencepiece_definition(folder, settings)
    else:
        raise CheckpointError(
            f"checkpoint '{folder}': no tokenizer found. Expected tokenizer.json, or "
            "tokenizer.model with added_tokens.json."
        )
    loaded = tokenizers.Tokenizer.from_str(definition)
    found = {name: loaded.token_to_id(name) for name in (*CONTROL_TOKENS, "<s>", "</s>")}
    ids = {name: number for name, number in found.items() if number is not None}
    missing = [name for name in found if name not in ids]
    if missing:
        raise CheckpointError(
            f"checkpoint '{folder}': the tokenizer lacks the control tokens {', '.join(missing)}. "
            "Expected all 26 of VisionLLM v2; check added_tokens.json."
        )
    first = ids[_CONSECUTIVE[0]]
    if [ids[name] for name in _CONSECUTIVE] != [first + k for k in range(len(_CONSECUTIVE))]:
        raise CheckpointError(
            f"checkpoint '{folder}': ids of {', '.join(_CONSECUTIVE)} expected to follow each "
            f"other, got {[ids[name] for name in _CONSECUTIVE]}."
        )
    highest = max(ids, key=lambda name: ids[name])
    if ids[highest] >= vocab_size:
        raise CheckpointError(
            f"checkpoint '{folder}': control token '{highest}' has id {ids[highest]}, the "
            f"embedding table has {vocab_size} rows. Tokenizer and weights do not belong together."
        )
    return ConvertedTokenizer(
        definition=definition,
        controls={name: ids[name] for name in CONTROL_TOKENS},
        bos=ids["<s>"],
        eos=ids["</s>"],
        # transformers' default, when the checkpoint does not say, is the legacy behaviour.
        space_after_control=bool(settings.get("legacy", True)),
    )


def checked_definition(path: Path) -> str:
    """Content of a ``tokenizer.json``.

    Raises:
        CheckpointError: the tokenizers library cannot read it.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tokenizers.Tokenizer.from_str(text)
    except Exception as e:  # the tokenizers library raises bare Exception
        raise CheckpointError(
            f"checkpoint file '{path.name}': expected a tokenizers definition, got: {e}."
        ) from e
    return text


def read_settings(path: Path) -> Mapping[str, Any]:
    """A JSON file beside the tokenizer; empty if there is none.

    Raises:
        CheckpointError: not JSON, or no object.
    """
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise CheckpointError(f"checkpoint file '{path.name}': not valid JSON: {e}.") from e
    if not isinstance(data, dict):
        raise CheckpointError(
            f"checkpoint file '{path.name}': expected an object, got {type(data).__name__}."
        )
    return data


def sentencepiece_definition(folder: Path, settings: Mapping[str, Any]) -> str:
    """A folder's ``tokenizer.model`` with its added tokens, as content of a ``tokenizer.json``.

    Raises:
        CheckpointError: no SentencePiece model, or added tokens with a gap between the ids.
    """
    import sentencepiece

    try:
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    except (OSError, RuntimeError) as e:
        raise CheckpointError(
            f"checkpoint file 'tokenizer.model': expected a SentencePiece model, got: {e}."
        ) from e
    vocab: dict[str, int] = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    mergeable = {
        piece: rank
        for piece, rank in vocab.items()
        if not (pieces.is_byte(rank) or pieces.is_control(rank) or pieces.is_unknown(rank))
    }
    tokenizer = sentencepiece_bpe(vocab, mergeable)
    base = [name for name in ("<unk>", "<s>", "</s>") if name in vocab]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in base])
    for name, number in _added_tokens(folder, settings):
        flags = _flags(settings, number)
        tokenizer.add_special_tokens(
            [AddedToken(name, normalized=False, lstrip=flags[0], rstrip=flags[1])]
        )
        if tokenizer.token_to_id(name) != number:
            raise CheckpointError(
                f"checkpoint file 'added_tokens.json': '{name}' has id {number}, expected "
                f"{tokenizer.token_to_id(name)}: ids must follow the {len(vocab)} pieces of "
                "tokenizer.model without a gap."
            )
    return tokenizer.to_str()


def sentencepiece_bpe(
    vocab: Mapping[str, int], ranks: Mapping[str, int], *, prefix: bool = True
) -> tokenizers.Tokenizer:
    """LLaMA's byte-pair model with byte fallback, without added tokens.

    Args:
        vocab: id of every piece.
        ranks: of the pieces that may be merged: order of preference, best first.
        prefix: whether a text gets the dummy prefix.
    """
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            dict(vocab), _merges(ranks), unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    # SentencePiece's own dummy prefix: always one, also before a text that starts with a blank.
    blanks = tokenizers.normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = (
        tokenizers.normalizers.Sequence([tokenizers.normalizers.Prepend(_SPACE), blanks])
        if prefix
        else blanks
    )
    strip = [tokenizers.decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace(_SPACE, " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            *strip,
        ]
    )
    return tokenizer


def _merges(pieces: Mapping[str, int]) -> list[tuple[str, str]]:
    """Pairs of pieces that form a piece, in the order in which SentencePiece prefers them.

    It merges the pair whose result has the best score; so do the ranks go.
    """
    ranked = [
        (rank, pieces[piece[:cut]], pieces[piece[cut:]], piece[:cut], piece[cut:])
        for piece, rank in pieces.items()
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]
    return [(left, right) for *_, left, right in sorted(ranked)]


def _added_tokens(folder: Path, settings: Mapping[str, Any]) -> list[tuple[str, int]]:
    added = dict(read_settings(folder / "added_tokens.json"))
    if not added:
        decoder = settings.get("added_tokens_decoder") or {}
        added = {str(entry["content"]): int(number) for number, entry in decoder.items()}
    for name in ("<unk>", "<s>", "</s>"):  # pieces of tokenizer.model already
        added.pop(name, None)
    return sorted(((name, int(number)) for name, number in added.items()), key=lambda e: e[1])


def _flags(settings: Mapping[str, Any], number: int) -> tuple[bool, bool]:
    """Whether white space before and after the token is eaten; so in the released tokenizer."""
    entry = (settings.get("added_tokens_decoder") or {}).get(str(number), {})
    return bool(entry.get("lstrip", True)), bool(entry.get("rstrip", True))
