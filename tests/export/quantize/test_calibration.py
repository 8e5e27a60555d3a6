from pathlib import Path

import numpy as np
import pytest
import torch

from tests.export.quantize.small_llama import CONFIG, SmallLlama
from visionllm_edge.export.checkpoint import Checkpoint, load_model
from visionllm_edge.export.llm.hf_folder import VisionLLMWeights
from visionllm_edge.export.llm.weights import EMBEDDING
from visionllm_edge.export.quantize.calibration import TEXT, text_calibration, text_id
from visionllm_edge.export.quantize.picture_calibration import picture_calibration
from visionllm_edge.export.tokenizer import convert_tokenizer
from visionllm_edge.runtime.errors import ConfigError

TINY = Path(__file__).parents[3] / "export" / "tiny" / "checkpoint"


def _encode(text: str) -> list[int]:
    return [ord(letter) % CONFIG.vocab_size for letter in text]


def test_pieces_of_the_text_become_rows_of_the_table(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("abcdefgh" * 100, encoding="utf-8")
    weights = SmallLlama()
    made = text_calibration(weights, _encode, text, sequences=4, length=200)
    assert [len(rows) for rows in made.sequences] == [64] * 4  # no longer than the context
    table = weights.tensors[EMBEDDING].numpy()
    np.testing.assert_array_equal(made.sequences[0][1], table[ord("b") % 64])
    again = text_calibration(weights, _encode, text, sequences=4, length=200)
    fewer = text_calibration(weights, _encode, text, sequences=3, length=200)
    assert made.fingerprint == again.fingerprint != fewer.fingerprint


def test_our_own_text_is_there() -> None:
    made = text_calibration(SmallLlama(), _encode)
    assert len(made.sequences) == 16 and TEXT.name in made.origin
    assert text_id(None) == text_id(TEXT)


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("short", encoding="utf-8")
    with pytest.raises(ConfigError, match="expected a text of at least 256 tokens, got 5"):
        text_calibration(SmallLlama(), _encode, text)
    with pytest.raises(ConfigError, match=r"'gone.txt' cannot be read as UTF-8 text"):
        text_id(tmp_path / "gone.txt")


def test_conversations_hold_image_rows_and_super_link_rows() -> None:
    checkpoint = Checkpoint(TINY)
    weights, model = VisionLLMWeights(checkpoint), load_model(checkpoint)
    tokenizer = convert_tokenizer(TINY, vocab_size=weights.config.vocab_size)
    made = picture_calibration(weights, model, tokenizer, pictures=2)
    told, texts = made.sequences[:2], made.sequences[2:]
    assert len(texts) == 4 and {len(rows) for rows in texts} == {256}
    table = weights.tensor(EMBEDDING).float().numpy()
    link = model.emb_embeddings_det.weight.detach().numpy()
    for rows in told:
        known = {row.tobytes() for row in table}
        new = [row for row in rows if row.tobytes() not in known]
        linked = [row for row in new if any(np.array_equal(row, one) for one in link)]
        assert len(new) - len(linked) == model.config.vision.tokens_per_tile
        assert linked and len(linked) % len(link) == 0
        np.testing.assert_array_equal(linked[: len(link)], link)
    patch = table[tokenizer.controls["<im_patch>"]]
    assert not any(torch.equal(torch.tensor(row), torch.tensor(patch)) for row in told[0])
