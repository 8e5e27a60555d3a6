"""Tokenizers of language models: the ids of the original, whatever file they come in."""

from __future__ import annotations

import json
import logging
import random
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from tokenizers.processors import TemplateProcessing

from tests.export.llm.byte_level import (
    CONTROLS,
    byte_level,
    byte_level_fields,
    write_byte_level,
)
from tests.export.llm.llama_folder import (
    SMALL,
    config_json,
    random_state,
    sentencepiece_fields,
    write_gguf,
    write_llama_folder,
)
from tests.export.llm.test_chat_template import INSTRUCTIONS, WITH_SYSTEM
from tests.export.small_checkpoint import write_small_checkpoint
from visionllm_edge.export.llm.tokenizer import convert_llm_tokenizer
from visionllm_edge.export.llm.weights import open_llm
from visionllm_edge.export.tokenizer import CONTROL_TOKENS, ConvertedTokenizer
from visionllm_edge.runtime.errors import CheckpointError, ConfigError
from visionllm_edge.runtime.manifest import PromptSpec
from visionllm_edge.runtime.prompts import Text, Turn, conversation
from visionllm_edge.runtime.tokenizer import Tokenizer

BYTES = replace(SMALL, vocab_size=400)


def random_texts(count: int = 200) -> list[str]:
    rng = random.Random(0)
    words = [
        *("the", " red", " circle", "'s", "DON'T", " 12345", "3.14", "\n", "\n\n", " ", "   "),
        *("\t", "é", "猫", "🙂", "<|im_start|>", "[DET]", "hello_world", "\r\n", "...", "①"),
    ]
    return ["".join(rng.choices(words, k=rng.randint(1, 10))) for _ in range(count)]


def reader(converted: ConvertedTokenizer) -> Tokenizer:
    return Tokenizer(
        converted.definition,
        controls=converted.controls,
        bos=converted.bos,
        eos=converted.eos,
        space_after_control=converted.space_after_control,
    )


def gguf_model(path: Path, settings: dict[str, object]) -> tuple[ConvertedTokenizer, PromptSpec]:
    tokens = settings["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    config = replace(SMALL, vocab_size=len(tokens), num_hidden_layers=1)
    rows = {name: tensor.numpy() for name, tensor in random_state(config).items()}
    write_gguf(path, rows, config, settings=settings)
    return convert_llm_tokenizer(open_llm(path))


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pieces")
    write_llama_folder(folder)
    return folder


@pytest.fixture(scope="module")
def whole() -> tokenizers.Tokenizer:
    return byte_level()


def byte_level_folder(
    folder: Path, whole: tokenizers.Tokenizer, **settings: object
) -> tuple[ConvertedTokenizer, PromptSpec]:
    config = replace(BYTES, vocab_size=whole.get_vocab_size())
    write_llama_folder(folder, config, tokenizer=False)
    write_byte_level(folder, whole, **settings)
    return convert_llm_tokenizer(open_llm(folder))


@pytest.mark.parametrize("source", ["folder", "gguf"])
def test_sentencepiece(source: str, pieces: Path, tmp_path: Path) -> None:
    if source == "folder":
        converted, prompt = convert_llm_tokenizer(open_llm(pieces))
    else:
        converted, prompt = gguf_model(tmp_path / "m.gguf", sentencepiece_fields(pieces))
    truth = sentencepiece.SentencePieceProcessor(model_file=str(pieces / "tokenizer.model"))
    ours = reader(converted)
    assert prompt == PromptSpec("plain")
    assert (converted.bos, converted.eos, converted.space_after_control) == (1, 2, True)
    assert set(converted.controls) == {*CONTROL_TOKENS, "<s>", "</s>", "<unk>"}
    for text in random_texts():
        ids = ours.encode([Text(text)])
        assert ids == [1, *truth.encode(text)], text
        assert ours.decode(ids[1:]) == text


def test_sentencepiece_without_the_dummy_prefix(pieces: Path, tmp_path: Path) -> None:
    settings = sentencepiece_fields(pieces) | {
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.add_bos_token": False,
    }
    converted, _ = gguf_model(tmp_path / "m.gguf", settings)
    ours = reader(converted)
    assert converted.bos is None
    assert not converted.space_after_control
    for text in random_texts(50):
        ids = ours.encode([Text(text)])
        assert not (not text.startswith(" ") and ours.decode_pieces(ids[:1]).startswith(" "))
        assert ours.decode(ids) == text


@pytest.mark.parametrize("words", ["gpt-2", "smollm", "llama-bpe"])
def test_byte_level_gguf(words: str, tmp_path: Path) -> None:
    truth = byte_level(words)
    converted, _ = gguf_model(tmp_path / "m.gguf", byte_level_fields(truth, words))
    ours = reader(converted)
    assert dict(converted.controls) == {name: i for i, name in enumerate(CONTROLS)}
    assert converted.bos == (0 if words == "llama-bpe" else None)
    truth.encode_special_tokens = True  # a control that is typed is text
    for text in random_texts():
        ids = ours.encode([Text(text)], bos=False)
        assert ids == truth.encode(text).ids, text
        assert ours.decode(ids) == text


def test_the_ways_of_cutting_words_differ() -> None:
    """Else the test above could not tell them apart."""
    text = "DON'T 12345\n\n  x"
    assert len({tuple(byte_level(w).encode(text).ids) for w in ("gpt-2", "smollm")}) == 2
    cuts = []
    for words in ("gpt-2", "smollm", "llama-bpe"):
        cutter = byte_level(words).pre_tokenizer
        assert cutter is not None
        cuts.append([word for word, _ in cutter.pre_tokenize_str(text)])
    assert cuts[0] != cuts[1] != cuts[2] != cuts[0]


def test_byte_level_folder(whole: tokenizers.Tokenizer, tmp_path: Path) -> None:
    converted, prompt = byte_level_folder(
        tmp_path,
        whole,
        bos_token="<|im_start|>",
        eos_token={"content": "<|im_end|>"},
        chat_template=WITH_SYSTEM,
    )
    assert converted.definition == whole.to_str()
    assert (converted.bos, converted.eos) == (None, 2)
    assert prompt == PromptSpec("chatml", "You are an owl.")
    ours = reader(converted)
    ids = ours.encode(
        conversation(
            (Turn("猫?", (Text("Yes."),)), Turn("Why 12?")),
            image=False,
            template=prompt.template,
            system=prompt.system,
        )
    )
    line = (
        "<|im_start|>system\nYou are an owl.<|im_end|>\n<|im_start|>user\n猫?<|im_end|>\n"
        "<|im_start|>assistant\nYes.<|im_end|>\n<|im_start|>user\nWhy 12?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert ids == whole.encode(line).ids
    assert ours.decode(ids) == line


@pytest.mark.parametrize("puts_bos", [False, True])
def test_bos_as_the_tokenizer_puts_it(
    puts_bos: bool, whole: tokenizers.Tokenizer, tmp_path: Path
) -> None:
    copy = tokenizers.Tokenizer.from_str(whole.to_str())
    if puts_bos:
        copy.post_processor = TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
    converted, _ = byte_level_folder(
        tmp_path, copy, bos_token="<|endoftext|>", eos_token="<|im_end|>"
    )
    assert converted.bos == (0 if puts_bos else None)


def test_the_flag_of_llama_tokenizers(pieces: Path, tmp_path: Path) -> None:
    for path in pieces.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "add_bos_token": False, "legacy": False}))
    converted, _ = convert_llm_tokenizer(open_llm(tmp_path))
    assert converted.bos is None
    assert not converted.space_after_control


def test_end_by_number_from_the_config(whole: tokenizers.Tokenizer, tmp_path: Path) -> None:
    write_llama_folder(tmp_path, BYTES, tokenizer=False)
    write_byte_level(tmp_path, whole)
    data = config_json(BYTES)
    with pytest.raises(CheckpointError, match=r"expected a token that ends an answer, got none"):
        convert_llm_tokenizer(open_llm(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({**data, "eos_token_id": [2, 0]}))
    assert convert_llm_tokenizer(open_llm(tmp_path))[0].eos == 2


def test_chatml_ends_with_its_own_token(whole: tokenizers.Tokenizer, tmp_path: Path) -> None:
    settings = byte_level_fields(whole) | {"tokenizer.chat_template": WITH_SYSTEM}
    converted, prompt = gguf_model(tmp_path / "m.gguf", settings)
    assert prompt.template == "chatml"
    assert converted.eos == 2  # the header says 0


@pytest.mark.parametrize("form", ["setting", "several", "file"])
def test_where_folders_keep_their_template(
    form: str, whole: tokenizers.Tokenizer, tmp_path: Path
) -> None:
    several = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": WITH_SYSTEM}]
    settings: dict[str, object] = {"eos_token": "<|im_end|>"}
    if form != "file":
        settings["chat_template"] = WITH_SYSTEM if form == "setting" else several
    else:
        (tmp_path / "chat_template.jinja").write_text(WITH_SYSTEM, encoding="utf-8")
    assert byte_level_folder(tmp_path, whole, **settings)[1].template == "chatml"


def test_an_unknown_template_is_plain_text_with_a_warning(
    whole: tokenizers.Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = byte_level_fields(whole) | {"tokenizer.chat_template": INSTRUCTIONS}
    with caplog.at_level(logging.WARNING):
        _, prompt = gguf_model(tmp_path / "m.gguf", settings)
    assert prompt == PromptSpec("plain")
    assert "m.gguf: its chat template is none of those" in caplog.text


def test_without_a_template_there_is_no_warning(
    whole: tokenizers.Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, prompt = gguf_model(tmp_path / "m.gguf", byte_level_fields(whole))
    assert (prompt, caplog.text) == (PromptSpec("plain"), "")


@pytest.mark.parametrize(
    ("field", "value", "error", "named"),
    [
        ("model", "bert", ConfigError, "expected 'llama' .* or 'gpt2' .*, got 'bert'"),
        ("model", None, CheckpointError, "expected a text, got nothing"),
        ("pre", "qwen2", ConfigError, "expected one of gpt-2, smollm, llama-bpe, got 'qwen2'"),
        ("pre", None, CheckpointError, "expected a text, got nothing"),
        ("merges", ["never seen"], CheckpointError, "expected pairs of pieces"),
        ("token_type", [1, 2], CheckpointError, r"expected \d+ numbers, one for each token, got 2"),
        ("eos_token_id", None, CheckpointError, "expected an id, got nothing"),
        ("eos_token_id", 5000, CheckpointError, r"expected an id below \d+, got 5000"),
        ("add_bos_token", 1, CheckpointError, "expected true or false, got 1"),
    ],
)
def test_headers_that_cannot_be_read_are_refused_by_field(
    field: str,
    value: object,
    error: type[Exception],
    named: str,
    whole: tokenizers.Tokenizer,
    tmp_path: Path,
) -> None:
    settings = byte_level_fields(whole) | {f"tokenizer.ggml.{field}": value}
    with pytest.raises(error, match=rf"'m\.gguf': tokenizer\.ggml\.{field}: {named}"):
        gguf_model(tmp_path / "m.gguf", settings)


def test_ids_beyond_the_embedding_table_are_refused(
    whole: tokenizers.Tokenizer, tmp_path: Path
) -> None:
    write_llama_folder(tmp_path, replace(BYTES, vocab_size=2), tokenizer=False)
    write_byte_level(tmp_path, whole, eos_token="<|im_end|>")
    with pytest.raises(CheckpointError, match="control token id 2: expected ids below 2"):
        convert_llm_tokenizer(open_llm(tmp_path))


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    write_llama_folder(tmp_path, tokenizer=False)
    with pytest.raises(CheckpointError, match=r"no tokenizer found.*tokenizer\.json"):
        convert_llm_tokenizer(open_llm(tmp_path))


def test_a_visionllm_keeps_its_own(tmp_path: Path) -> None:
    write_small_checkpoint(tmp_path)
    converted, prompt = convert_llm_tokenizer(open_llm(tmp_path))
    assert set(converted.controls) == set(CONTROL_TOKENS)
    assert prompt == PromptSpec("vicuna_v1")
