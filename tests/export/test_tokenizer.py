from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import sentencepiece
import tokenizers

from tests.export.tokenizer_files import write_tokenizer_files
from visionllm_edge.export.tokenizer import CONTROL_TOKENS, convert_tokenizer
from visionllm_edge.runtime.errors import CheckpointError
from visionllm_edge.runtime.prompts import Control, Text
from visionllm_edge.runtime.tokenizer import Tokenizer

TEXTS = [
    "Can you analyze the image?",
    " leading and  double   blanks ",
    "Ünïcode, 中文 and ☃ by bytes",
    "line\nbreaks\tand tabs",
    "",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer_files(folder)
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_converted_pieces_are_those_of_sentencepiece(folder: Path) -> None:
    converted = tokenizers.Tokenizer.from_str(convert_tokenizer(folder, vocab_size=1000).definition)
    truth = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    for text in TEXTS:
        ids = converted.encode(text, add_special_tokens=False).ids
        assert ids == truth.encode(text), text
        assert converted.decode(ids) == text


def test_random_texts_give_the_pieces_of_sentencepiece(folder: Path) -> None:
    converted = tokenizers.Tokenizer.from_str(convert_tokenizer(folder, vocab_size=1000).definition)
    truth = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    rng = random.Random(0)
    alphabet = " aeinrst anidentify the person circle.,☃é"
    for _ in range(300):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(1, 40)))
        assert converted.encode(text, add_special_tokens=False).ids == truth.encode(text), text


def test_controls_are_found_by_name(folder: Path) -> None:
    converted = convert_tokenizer(folder, vocab_size=1000)
    added = json.loads((folder / "added_tokens.json").read_text())
    assert dict(converted.controls) == added
    assert set(converted.controls) == set(CONTROL_TOKENS)
    assert (converted.bos, converted.eos) == (1, 2)


def test_the_runtime_reads_it(folder: Path) -> None:
    converted = convert_tokenizer(folder, vocab_size=1000)
    tokenizer = Tokenizer(
        converted.definition,
        controls=converted.controls,
        bos=converted.bos,
        eos=converted.eos,
        space_after_control=converted.space_after_control,
    )
    ids = tokenizer.encode([Text("the red circle [DET]"), Control("[DET]")])
    assert ids[0] == 1
    assert ids.count(converted.controls["[DET]"]) == 1
    assert ids[-1] == converted.controls["[DET]"]


def test_a_tokenizer_json_is_taken_as_it_is(copy: Path) -> None:
    definition = convert_tokenizer(copy, vocab_size=1000).definition
    marked = json.loads(definition)
    marked["version"] = "1.0"
    text = json.dumps(marked, indent=3)
    (copy / "tokenizer.json").write_text(text, encoding="utf-8")
    (copy / "tokenizer.model").unlink()
    assert convert_tokenizer(copy, vocab_size=1000).definition == text


@pytest.mark.parametrize(("legacy", "expected"), [(None, True), (True, True), (False, False)])
def test_the_legacy_flag(copy: Path, legacy: bool | None, expected: bool) -> None:
    path = copy / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    if legacy is not None:
        settings["legacy"] = legacy
    path.write_text(json.dumps(settings))
    assert convert_tokenizer(copy, vocab_size=1000).space_after_control is expected


def test_a_missing_control_token_is_refused(tmp_path: Path) -> None:
    write_tokenizer_files(tmp_path, leave_out=("[SEG]", "[POSE]"))
    with pytest.raises(CheckpointError, match=r"lacks the control tokens \[SEG\], \[POSE\]"):
        convert_tokenizer(tmp_path, vocab_size=1000)


def test_ids_beyond_the_embedding_table_are_refused(folder: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"'\[EMB8\]' has id \d+, the embedding table has 300"
    ):
        convert_tokenizer(folder, vocab_size=300)


def test_ids_with_a_gap_are_refused(copy: Path) -> None:
    path = copy / "added_tokens.json"
    added = json.loads(path.read_text())
    path.write_text(json.dumps({name: number + 5 for name, number in added.items()}))
    with pytest.raises(CheckpointError, match="without a gap"):
        convert_tokenizer(copy, vocab_size=1000)


def test_files_that_are_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tokenizer found"):
        convert_tokenizer(tmp_path, vocab_size=1000)
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(CheckpointError, match=r"'tokenizer\.model': expected a SentencePiece"):
        convert_tokenizer(tmp_path, vocab_size=1000)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"'tokenizer\.json': expected a tokenizers"):
        convert_tokenizer(tmp_path, vocab_size=1000)
