"""The tokenizer against whole-string encoding by the library it is built on."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from visionllm_edge.runtime.errors import BundleError, InputError
from visionllm_edge.runtime.prompts import Control, ImageSlot, Segment, Text
from visionllm_edge.runtime.tokenizer import Tokenizer

BLANK = "\N{LOWER ONE EIGHTH BLOCK}"
CONTROLS = ("[PAD]", "<image>", "<im_patch>", "<det>", "</det>", "[DET]", "[GRD]", "[EMB]")
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,:?'<>/[]_" + BLANK
# "</s>" can be spelled by merges: a converted SentencePiece vocabulary may allow that.
MERGES = [
    ("<", "/"), ("s", ">"), ("</", "s>"), (BLANK, "c"), (BLANK + "c", "a"), (BLANK + "ca", "t"),
    ("c", "a"), ("ca", "t"), (BLANK, "d"), ("o", "g"), (BLANK + "d", "og"), ("d", "og"),
    (BLANK, "<"), (BLANK, "["), ("D", "E"), ("DE", "T"), (BLANK, ","), ("h", "e"),
]  # fmt: skip


def definition(*, legacy: bool) -> str:
    """A LLaMA-type tokenizer.json: Prepend + Replace as converted files have it, or Metaspace."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for piece in [f"<0x{i:02X}>" for i in range(256)] + list(LETTERS):
        vocab.setdefault(piece, len(vocab))
    for left, right in MERGES:
        vocab.setdefault(left + right, len(vocab))
    whole = tokenizers.Tokenizer(
        models.BPE(vocab, MERGES, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if legacy:
        whole.normalizer = normalizers.Sequence(
            [normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)]
        )
    else:
        whole.pre_tokenizer = pre_tokenizers.Metaspace(
            replacement=BLANK, prepend_scheme="first", split=False
        )
    whole.decoder = decoders.Sequence(
        [
            decoders.Replace(BLANK, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    whole.add_special_tokens(
        [AddedToken(t, normalized=False, special=True) for t in ("<unk>", "<s>", "</s>")]
    )
    whole.add_special_tokens(
        [AddedToken(t, lstrip=True, rstrip=True, normalized=False) for t in CONTROLS]
    )
    text: str = whole.to_str()
    return text


def token_id(whole: tokenizers.Tokenizer, name: str) -> int:
    """Id of a token that is there."""
    token: int | None = whole.token_to_id(name)
    assert token is not None
    return token


def build(*, legacy: bool) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    """Ours, and the library's whole-string form of the same file."""
    text = definition(legacy=legacy)
    whole = tokenizers.Tokenizer.from_str(text)
    controls = {name: token_id(whole, name) for name in CONTROLS}
    ours = Tokenizer(text, controls=controls, bos=1, eos=2, space_after_control=legacy)
    return ours, whole


@pytest.fixture(params=[True, False], ids=["legacy", "modern"])
def pair(request: pytest.FixtureRequest) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    return build(legacy=request.param)


@pytest.mark.parametrize(
    "parts",
    [
        ["cat dog"],
        ["USER: cat ", "[DET]", ", dog ", "[DET]", "."],
        ["[DET]", "cat"],
        ["the ", "<det>", " cat ", "</det>", "[DET]", " and"],
        ["cat.", "</s>", "USER: dog ASSISTANT:"],
        ["cat. ", "</s>", " USER"],
        ["a", "[DET]", "  ", "[DET]", "b"],
    ],
)
def test_equals_whole_string_encoding(
    pair: tuple[Tokenizer, tokenizers.Tokenizer], parts: list[str]
) -> None:
    ours, whole = pair
    names = {*CONTROLS, "</s>"}
    segments: list[Segment] = [Control(p) if p in names else Text(p) for p in parts]

    expected = whole.encode("".join(parts), add_special_tokens=False).ids

    assert ours.encode(segments) == [1, *expected]


@pytest.mark.parametrize("seed", range(30))
def test_equals_whole_string_encoding_on_random_prompts(
    pair: tuple[Tokenizer, tokenizers.Tokenizer], seed: int
) -> None:
    ours, whole = pair
    rng = random.Random(seed)
    words = ["cat", "dog", "he", ",", ".", " ", "  ", "éß", "\n", "猫", "x y"]
    segments: list[Segment] = []
    for _ in range(rng.randint(1, 8)):
        if rng.random() < 0.4:
            segments.append(Control(rng.choice([*CONTROLS[3:], "</s>"])))
        else:
            segments.append(Text("".join(rng.choice(words) for _ in range(rng.randint(1, 4)))))
    line = "".join(
        s.text if isinstance(s, Text) else s.name for s in segments if not isinstance(s, ImageSlot)
    )

    expected = whole.encode(line, add_special_tokens=False).ids

    assert ours.encode(segments) == [1, *expected]


def test_texts_around_the_image_are_encoded_by_themselves(
    pair: tuple[Tokenizer, tokenizers.Tokenizer],
) -> None:
    ours, whole = pair
    patch = token_id(whole, "<im_patch>")

    ids = ours.encode([Text("USER: "), ImageSlot(), Text("\ncat")], image_tokens=3)

    before = whole.encode("USER: ", add_special_tokens=False).ids
    after = whole.encode("\ncat", add_special_tokens=False).ids
    assert ids == [1, *before, patch, patch, patch, *after]
    assert whole.id_to_token(before[-1]) == BLANK  # the blank before the image stays


@pytest.mark.parametrize("word", [*CONTROLS, "<s>", "</s>", "x</s>y", "<unk>"])
def test_typed_control_words_stay_text(
    pair: tuple[Tokenizer, tokenizers.Tokenizer], word: str
) -> None:
    ours, _ = pair

    ids = ours.encode([Text(f"a {word} b"), Control("[DET]")], bos=False)

    assert [i for i in ids if ours.control_name(i)] == [ours.control_id("[DET]")]
    assert ours.decode(ids) == f"a {word} b[DET]"


def test_a_vocabulary_that_cannot_keep_a_word_plain_is_an_error() -> None:
    whole = tokenizers.Tokenizer(models.WordLevel({"<unk>": 0, "[DET]": 1, "cat": 2}, "<unk>"))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ours = Tokenizer(whole.to_str(), controls={"[DET]": 1}, bos=5, eos=6, space_after_control=False)

    with pytest.raises(InputError, match=r"\[DET\]"):
        ours.encode([Text("cat [DET]")])


def test_unknown_control_and_lone_surrogate_are_errors() -> None:
    ours, _ = build(legacy=False)

    with pytest.raises(InputError, match="'nope'"):
        ours.encode([Control("nope")])
    with pytest.raises(InputError, match="surrogate"):
        ours.encode([Text("a\ud800")])


def test_a_broken_file_is_a_bundle_error(tmp_path: Any) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": 3}))

    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        Tokenizer.from_file(path, controls={}, bos=1, eos=2, space_after_control=False)
    with pytest.raises(BundleError, match="readable"):
        Tokenizer.from_file(
            tmp_path / "none.json", controls={}, bos=1, eos=2, space_after_control=False
        )


@pytest.mark.parametrize("text", ["cat dog, he", "é 猫猫 x", "a  b", "\n", "€uro ✓✓", "ends 猫"])
def test_stream_gives_the_text_and_never_half_a_character(
    pair: tuple[Tokenizer, tokenizers.Tokenizer], text: str
) -> None:
    ours, _ = pair
    ids = ours.encode([Text(text)], bos=False)
    stream = ours.stream()

    pieces = [stream.push(token) for token in ids]

    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + stream.flush() == text


def test_an_unfinished_character_comes_out_at_the_end() -> None:
    ours, whole = build(legacy=False)
    stream = ours.stream()

    pieces = [stream.push(token_id(whole, p)) for p in (BLANK + "cat", "<0xE7>", "<0x8C>")]

    assert pieces == ["cat", "", ""]
    assert stream.flush() == "\ufffd\ufffd"
    assert stream.flush() == ""


def test_controls_show_by_name_with_a_blank_before_a_word() -> None:
    ours, _ = build(legacy=False)
    segments: list[Segment] = [
        Text("a"),
        Control("[DET]"),
        Text(", b"),
        Control("[DET]"),
        Text("and he."),
    ]

    assert ours.decode(ours.encode(segments, bos=False)) == "a[DET], b[DET] and he."
