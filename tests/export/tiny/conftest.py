"""The tiny checkpoint's tokenizer, trained once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from visionllm_edge.export.config import VisionLLMConfig, config_from_dict
from visionllm_edge.export.tiny.architecture import tiny_config
from visionllm_edge.export.tiny.training_folder import load_tokenizer
from visionllm_edge.export.tiny.vocabulary import PIECES, SPECIAL_TOKENS, write_tokenizer
from visionllm_edge.runtime.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with all tokenizer files."""
    folder = tmp_path_factory.mktemp("vocabulary")
    size = write_tokenizer(folder)
    assert 26 + 3 + 256 < size <= PIECES + len(SPECIAL_TOKENS)
    return folder


@pytest.fixture(scope="session")
def tokenizer(vocabulary: Path) -> Tokenizer:
    return load_tokenizer(vocabulary)


@pytest.fixture(scope="session")
def config(tokenizer: Tokenizer) -> VisionLLMConfig:
    return config_from_dict(tiny_config(tokenizer.size), name="tiny")
