"""The two forms of the vocabulary, SentencePiece and tokenizers, are one and the same."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers

from visionllm_edge.export.tiny.vocabulary import SPECIAL_TOKENS
from visionllm_edge.runtime import prompts
from visionllm_edge.runtime import shapes_world as world
from visionllm_edge.runtime.prompts import Control, ImageSlot, Text
from visionllm_edge.runtime.tokenizer import Tokenizer

WORDS = [
    "red", "green", "blue", "yellow", "circle", "circles", "star", "stars", "person", "square",
    "triangle", "diamond", "leftmost", "Where", "are", "the", "Sure,", "here", "results", "for",
    "Please", "detect", "image", "identify", "present?", "one", "word.", "zzz",
]  # fmt: skip
ODD = "aAzZ09 .,?!':-\n\t  éßñ漢字🙂\u00a0\u200b<>[]/&\\\"\x01"


@pytest.fixture(scope="module")
def processor(vocabulary: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(vocabulary / "tokenizer.model"))


@pytest.fixture(scope="module")
def fast(vocabulary: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(vocabulary / "tokenizer.json"))


def random_texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    texts = ["", " ", "  ", " a", "a ", "a  b", "\n", "aaaaaaaa", "ssssss", "the the  the"]
    texts += [*prompts.DETECTION_QUESTIONS, *prompts.CAPTION_QUESTIONS, prompts.SHORT_ANSWER]
    texts.append(prompts.system_prompt("vicuna_v1"))
    for _ in range(count):
        kind = rng.randrange(5)
        if kind == 0:
            texts.append("".join(rng.choice(ODD) for _ in range(rng.randrange(1, 25))))
        elif kind == 1:
            texts.append(rng.choice(["", " "]) + " ".join(rng.choices(WORDS, k=rng.randrange(12))))
        elif kind == 2:
            texts.append("".join(rng.choices("estancirl ", k=rng.randrange(1, 40))))
        elif kind == 3:
            scene = world.make_scene(
                np.random.default_rng(rng.randrange(10**6)), width=64, height=64
            )
            texts.append(world.caption(scene))
        else:
            # A word with something in the middle that no vocabulary expects.
            word = rng.choice(WORDS)
            cut = rng.randrange(len(word) + 1)
            texts.append(word[:cut] + rng.choice(ODD) + word[cut:])
    return texts


def test_same_ids_and_same_text(
    processor: sentencepiece.SentencePieceProcessor, fast: tokenizers.Tokenizer
) -> None:
    used: set[int] = set()
    for text in random_texts(2000, seed=0):
        ids = processor.encode(text)
        assert fast.encode(text, add_special_tokens=False).ids == ids, repr(text)
        assert fast.decode(ids, skip_special_tokens=False) == processor.decode(ids), repr(text)
        used |= set(ids)
    assert len(used) > 200  # whole words, parts of words, letters and bytes all took part


def test_every_text_comes_back(processor: sentencepiece.SentencePieceProcessor) -> None:
    for text in random_texts(300, seed=1):
        assert processor.decode(processor.encode(text)) == text
        assert processor.unk_id() not in processor.encode(text)


def test_runtime_tokenizer_splits_around_controls_like_sentencepiece(
    processor: sentencepiece.SentencePieceProcessor, tokenizer: Tokenizer
) -> None:
    patch = tokenizer.control_id("<im_patch>")
    ids = tokenizer.encode(
        [Text("USER: "), ImageSlot(), Text("\nWhere?"), Control("[DET]"), Control("</s>")],
        image_tokens=3,
    )
    before, after = processor.encode("USER: "), processor.encode("\nWhere?")
    assert ids == [1, *before, patch, patch, patch, *after, tokenizer.control_id("[DET]"), 2]


def test_special_tokens_follow_the_vocabulary_in_the_official_order(
    vocabulary: Path, processor: sentencepiece.SentencePieceProcessor, fast: tokenizers.Tokenizer
) -> None:
    base = processor.get_piece_size()
    assert len(SPECIAL_TOKENS) == len(set(SPECIAL_TOKENS)) == 26
    for i, name in enumerate(SPECIAL_TOKENS):
        assert fast.token_to_id(name) == base + i
        assert fast.encode(f"x {name} y", add_special_tokens=False).ids.count(base + i) == 1
    added = json.loads((vocabulary / "added_tokens.json").read_text(encoding="utf-8"))
    assert added == {name: base + i for i, name in enumerate(SPECIAL_TOKENS)}
    assert [fast.token_to_id(name) for name in ("<unk>", "<s>", "</s>")] == [0, 1, 2]
    first = added["[EMB]"]
    assert [added[f"[EMB{i}]"] for i in (2, 3, 4)] == [first + 1, first + 2, first + 3]


def test_white_space_beside_a_special_token_is_eaten(fast: tokenizers.Tokenizer) -> None:
    ids = fast.encode("a [DET] b", add_special_tokens=False).ids
    assert fast.encode("a[DET]b", add_special_tokens=False).ids == ids


def test_tokenizer_config_says_the_same(vocabulary: Path, fast: tokenizers.Tokenizer) -> None:
    config = json.loads((vocabulary / "tokenizer_config.json").read_text(encoding="utf-8"))
    for number, token in config["added_tokens_decoder"].items():
        assert fast.id_to_token(int(number)) == token["content"]
        eats = token["content"] in SPECIAL_TOKENS
        assert (token["lstrip"], token["rstrip"], token["special"]) == (eats, eats, True)
    special = json.loads((vocabulary / "special_tokens_map.json").read_text(encoding="utf-8"))
    assert special["additional_special_tokens"] == list(SPECIAL_TOKENS)
    assert special["pad_token"] == config["pad_token"] == "<unk>"
