"""Byte-level vocabularies: controls, white space beside them, characters that come in pieces."""

from __future__ import annotations

import random

import pytest

from tests.export.llm.byte_level import CONTROLS, byte_level
from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.prompts import Control, Text
from visionllm_edge.runtime.tokenizer import Tokenizer

WHOLE = byte_level()


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return Tokenizer(
        WHOLE.to_str(),
        controls={name: i for i, name in enumerate(CONTROLS)},
        bos=None,
        eos=2,
        space_after_control=False,
    )


def byte_ids(text: str) -> list[int]:
    """One id for each byte, as a model may write a character that has no piece."""
    alphabet = byte_level().pre_tokenizer
    assert alphabet is not None
    out = []
    for letter in "".join(word for word, _ in alphabet.pre_tokenize_str(text)):
        number = WHOLE.token_to_id(letter)
        assert number is not None
        out.append(number)
    return out


def test_nothing_goes_first(ours: Tokenizer) -> None:
    assert ours.encode([Text("fox")]) == WHOLE.encode("fox").ids
    with pytest.raises(InputError, match="control token '<s>'"):
        ours.control_id("<s>")


def test_the_end_has_two_names(ours: Tokenizer) -> None:
    assert ours.control_id("</s>") == ours.control_id("<|im_end|>") == 2
    assert ours.control_name(2) == "<|im_end|>"


def test_white_space_beside_controls_is_kept(ours: Tokenizer) -> None:
    for end in ("</s>", "<|im_end|>"):
        segments = (Control("<|im_start|>"), Text("user\n fox \n"), Control(end), Text("\n  x"))
        line = "<|im_start|>user\n fox \n<|im_end|>\n  x"
        ids = ours.encode(segments)
        assert ids == WHOLE.encode(line).ids
        assert ours.decode(ids) == line


@pytest.mark.parametrize("word", [*CONTROLS, "</s>", "x<|im_end|>y"])
def test_typed_control_words_stay_text(ours: Tokenizer, word: str) -> None:
    ids = ours.encode([Text(word)])
    assert not set(ids) & {0, 1, 2}
    assert ours.decode(ids) == word


@pytest.mark.parametrize("text", ["猫", "🙂 é", "naïve 猫🙂x", "a\u200d🙂"])
def test_characters_come_whole(ours: Tokenizer, text: str) -> None:
    stream = ours.stream()
    pieces = [stream.push(token) for token in byte_ids(text)]
    assert len(pieces) == len(text.encode())
    assert "".join(pieces) == text
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
    assert stream.flush() == ""


def test_bytes_that_make_no_character(ours: Tokenizer) -> None:
    cat = byte_ids("猫")
    stream = ours.stream()
    assert [stream.push(token) for token in cat[:2]] == ["", ""]
    assert stream.push(1) == "\N{REPLACEMENT CHARACTER}<|im_start|>"
    assert stream.push(byte_ids("x")[0]) == "x"
    assert ours.decode([*cat[:2], *byte_ids("ox")]) == "\N{REPLACEMENT CHARACTER}ox"


def test_streaming_gives_what_decoding_the_whole_gives(ours: Tokenizer) -> None:
    rng = random.Random(0)
    words = ["fox", " 猫", "🙂", "\n", "  ", "é", "12", "—", "<|im_end|>"]
    for _ in range(100):
        text = "".join(rng.choices(words, k=rng.randint(1, 12)))
        ids = byte_ids(text) if rng.random() < 0.5 else ours.encode([Text(text)])
        stream = ours.stream()
        assert "".join([stream.push(token) for token in ids]) + stream.flush() == text
