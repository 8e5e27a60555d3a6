"""Text to ids and back, with control tokens that no user text can produce.

Text is always encoded as plain text: ``<image>``, ``[DET]`` or ``</s>`` typed by a user become
ordinary pieces. Control ids enter only through :class:`~visionllm_edge.runtime.prompts.Control`
and :class:`~visionllm_edge.runtime.prompts.ImageSlot` segments; every encoding is checked for it.

Two kinds of vocabulary are read: SentencePiece with byte fallback (LLaMA 1 and 2, VisionLLM), and
byte-level BPE (GPT-2, SmolLM2, LLaMA 3). Rules, those of the LLaMA SentencePiece tokenizer around
added tokens; byte-level vocabularies have no dummy prefix, so 3 and 4 say nothing about them:

1. BOS stands first, once, where the checkpoint has it so.
2. White space beside a control is dropped when the token's ``lstrip`` / ``rstrip`` say so.
3. The pieces on both sides of the image are encoded as strings of their own, nothing is dropped.
4. A text after a control gets the dummy prefix ``▁`` only if ``space_after_control`` (the
   ``legacy`` behaviour); the first text and a text after the image always do.

It knows nothing about embeddings or about what the model does with the ids.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from visionllm_edge.runtime.errors import BundleError, InputError
from visionllm_edge.runtime.prompts import Control, ImageSlot, Segment, Text

__all__ = ["TextStream", "Tokenizer"]

_IM_PATCH = "<im_patch>"
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Tokenizer:
    """Encodes prompt segments, decodes model output.

    Args:
        definition: content of a ``tokenizer.json``.
        controls: id of every control token by name.
        bos: id put first; None where nothing is.
        eos: id that ends an answer; reachable as ``Control("</s>")`` in every vocabulary.
        space_after_control: whether a text after a control gets the dummy prefix.
    """

    def __init__(
        self,
        definition: str,
        *,
        controls: Mapping[str, int],
        bos: int | None,
        eos: int,
        space_after_control: bool,
    ) -> None:
        """Build the plain encoders out of the definition."""
        try:
            data = json.loads(definition)
            self._whole = tokenizers.Tokenizer.from_str(definition)
        except Exception as error:  # the library raises bare Exception
            raise BundleError(
                f"tokenizer: expected a tokenizer.json that can be read, got: {error}. "
                "Compile the checkpoint again."
            ) from error
        self.bos = bos
        self.eos = eos
        self.space_after_control = space_after_control
        always = {"</s>": eos} if bos is None else {"<s>": bos, "</s>": eos}
        self._ids = {**controls, **always}
        # The checkpoint's own name of an id goes before the two that stand in every vocabulary.
        self._names = {i: name for name, i in (*always.items(), *controls.items())}
        self._strip = {
            token["content"]: (bool(token["lstrip"]), bool(token["rstrip"]))
            for token in data.get("added_tokens") or ()
        }
        self.byte_level = _has_part(data.get("decoder"), "ByteLevel")
        self._prefixed = _plain_encoder(data, self._names, prefix=True)
        self._bare = _plain_encoder(data, self._names, prefix=False)

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        controls: Mapping[str, int],
        bos: int | None,
        eos: int,
        space_after_control: bool,
    ) -> Tokenizer:
        """Read a ``tokenizer.json``.

        Raises:
            BundleError: the file cannot be read as a tokenizer.
        """
        try:
            definition = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(
                f"tokenizer: expected a readable file {Path(path).name}, got: {error}. "
                "Compile the checkpoint again."
            ) from error
        return cls(
            definition,
            controls=controls,
            bos=bos,
            eos=eos,
            space_after_control=space_after_control,
        )

    @property
    def size(self) -> int:
        """Number of ids that have a meaning (vocabulary and control tokens)."""
        return max(self._whole.get_vocab_size(with_added_tokens=True), max(self._ids.values()) + 1)

    @property
    def control_ids(self) -> Mapping[str, int]:
        """Id by name of every control token, BOS and EOS included."""
        return self._ids

    def control_id(self, name: str) -> int:
        """Id of a control token.

        Raises:
            InputError: the checkpoint has no such control token.
        """
        try:
            return self._ids[name]
        except KeyError:
            raise InputError(
                f"control token '{name}': expected one of {sorted(self._ids)}. "
                "Use a routing token of this checkpoint."
            ) from None

    def control_name(self, token: int) -> str | None:
        """Name of a control id, or None for an ordinary piece."""
        return self._names.get(token)

    def encode(
        self, segments: Iterable[Segment], *, image_tokens: int = 0, bos: bool = True
    ) -> list[int]:
        """Ids of a prompt.

        Args:
            segments: the prompt; neighbouring texts are encoded as one string.
            image_tokens: how many ``<im_patch>`` ids an image slot becomes.
            bos: put BOS first; False for a continuation of ids that exist already.

        Raises:
            InputError: an unknown control, or a text that this vocabulary cannot keep plain.
        """
        parts = _merge_texts(segments)
        ids = [self.bos] if bos and self.bos is not None else []
        inserted: Counter[int] = Counter(ids)
        for index, part in enumerate(parts):
            if isinstance(part, Control):
                new = [self.control_id(part.name)]
                inserted.update(new)
            elif isinstance(part, ImageSlot):
                new = [self.control_id(_IM_PATCH)] * image_tokens
                inserted.update(new)
            else:
                before = parts[index - 1] if index else None
                after = parts[index + 1] if index + 1 < len(parts) else None
                new = self._encode_text(part.text, before, after, start=bos)
            ids += new
        found = Counter(token for token in ids if token in self._names)
        assert found == +inserted, f"control ids {found} differ from the inserted ones {inserted}"
        return ids

    def _encode_text(
        self, text: str, before: Segment | None, after: Segment | None, *, start: bool
    ) -> list[int]:
        if isinstance(before, Control) and self._strips(before)[1]:
            text = text.lstrip()
        if isinstance(after, Control) and self._strips(after)[0]:
            text = text.rstrip()
        if not text:
            return []
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"text {text!r}: expected valid Unicode text, got a lone surrogate. "
                "Check the encoding of the terminal or file that it came from."
            ) from error
        follows_control = isinstance(before, Control) or (before is None and not start)
        prefix = not follows_control or self.space_after_control
        encoder = self._prefixed if prefix else self._bare
        ids: list[int] = encoder.encode(text, add_special_tokens=False).ids
        for token in ids:
            if token in self._names:
                raise InputError(
                    f"text {text!r}: expected plain text, got something this vocabulary can only "
                    f"write as the control token '{self._names[token]}'. Remove it from the text."
                )
        return ids

    def _strips(self, control: Control) -> tuple[bool, bool]:
        """Whether a control eats the white space before and after it."""
        name = self._names[self.control_id(control.name)]
        return self._strip.get(name, (True, True))

    def stream(self, after: Sequence[int] = ()) -> TextStream:
        """A decoder that turns ids into text one at a time; ``after`` is what stands before."""
        return TextStream(self, after)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; control tokens appear by name. Equal to what a stream emits."""
        stream = self.stream()
        return "".join([stream.push(token) for token in ids]) + stream.flush()

    def decode_pieces(self, ids: Sequence[int]) -> str:
        """Text of ordinary ids; incomplete UTF-8 bytes become U+FFFD."""
        text: str = self._whole.decode(list(ids), skip_special_tokens=False)
        return text


class TextStream:
    """Incremental decoding: text comes out as soon as it can no longer change.

    A character that byte-fallback pieces spell over several ids is held back until it is complete.
    In a SentencePiece vocabulary white space beside a control token carries no information (rule 2
    above), so a blank is put between a control and a word that follows it.
    """

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int] = ()) -> None:
        """Start behind a text that is known already; a blank is kept there, unlike at a start."""
        self._tokenizer = tokenizer
        # Pieces since the last control that may still change the text.
        self._run = [token for token in after if tokenizer.control_name(token) is None]
        self._settled = len(self._run)  # how many of them are emitted already, for context only
        self._after_control = False

    def push(self, token: int) -> str:
        """Take one id, return the text that became certain (often empty)."""
        name = self._tokenizer.control_name(token)
        if name is not None:
            held = self.flush()
            self._run, self._settled, self._after_control = [], 0, True
            return held + name
        self._run.append(token)
        context = self._tokenizer.decode_pieces(self._run[: self._settled])
        text = self._tokenizer.decode_pieces(self._run)
        if text.endswith(_INCOMPLETE) or len(text) <= len(context):
            return ""
        self._run = self._run[self._settled :]
        self._settled = len(self._run)
        return self._spaced(text[len(context) :])

    def flush(self) -> str:
        """Return what is still held back, complete or not."""
        context = self._tokenizer.decode_pieces(self._run[: self._settled])
        text = self._tokenizer.decode_pieces(self._run)
        self._settled = len(self._run)
        return self._spaced(text[len(context) :])

    def _spaced(self, text: str) -> str:
        if text and self._after_control:
            self._after_control = False
            if text[0].isalnum() and not self._tokenizer.byte_level:
                return " " + text
        return text


def _merge_texts(segments: Iterable[Segment]) -> list[Segment]:
    parts: list[Segment] = []
    for segment in segments:
        if isinstance(segment, Text):
            if not segment.text:
                continue
            if parts and isinstance(parts[-1], Text):
                parts[-1] = Text(parts[-1].text + segment.text)
                continue
        parts.append(segment)
    return parts


def _plain_encoder(
    data: Mapping[str, Any], controls: Mapping[int, str], *, prefix: bool
) -> tokenizers.Tokenizer:
    """A tokenizer that knows no control token.

    Control tokens are taken out of the added tokens, and the merges that would spell one (a
    converted SentencePiece vocabulary can hold ``</s>`` as a mergeable piece) out of the model.

    Args:
        data: content of ``tokenizer.json``.
        controls: name by id.
        prefix: whether the dummy prefix goes in front of a text.
    """
    names = frozenset(controls.values())
    plain = {**data, "post_processor": None, "truncation": None, "padding": None}
    plain["added_tokens"] = [
        token
        for token in data.get("added_tokens") or ()
        if not token["special"] and token["id"] not in controls
    ]
    model = dict(data["model"])
    if model.get("merges"):
        model["merges"] = [
            merge
            for merge in model["merges"]
            if "".join(merge.split(" ", 1) if isinstance(merge, str) else merge) not in names
        ]
    plain["model"] = model
    if not prefix:
        plain["normalizer"] = _without_prefix(data.get("normalizer"))
        plain["pre_tokenizer"] = _without_prefix(data.get("pre_tokenizer"))
    encoder = tokenizers.Tokenizer.from_str(json.dumps(plain))
    encoder.encode_special_tokens = True
    return encoder


def _has_part(part: Any, kind: str) -> bool:
    """Whether a definition is of this type, or a sequence with one that is."""
    if not isinstance(part, dict):
        return False
    children = part.get("decoders") or ()
    return part["type"] == kind or any(_has_part(child, kind) for child in children)


def _without_prefix(part: Any) -> Any:
    """A normalizer or pre-tokenizer definition that adds nothing in front of a text."""
    if part is None:
        return None
    kind = part["type"]
    if kind == "Prepend":
        return None
    if kind == "Sequence":
        key = "normalizers" if "normalizers" in part else "pretokenizers"
        kept = [child for child in map(_without_prefix, part[key]) if child is not None]
        return {**part, key: kept}
    if kind == "Metaspace":
        part = {name: value for name, value in part.items() if name != "add_prefix_space"}
        return {**part, "prepend_scheme": "never"}
    if kind == "ByteLevel":
        return {**part, "add_prefix_space": False}
    return part
