"""The language model at run time: embeddings, cache session, sampling, generation."""

from visionllm_edge.runtime.llm.answer_format import AnswerFormat, Choices, Listing
from visionllm_edge.runtime.llm.embeddings import EmbeddingTable, SuperLink
from visionllm_edge.runtime.llm.generate import Generation, Step
from visionllm_edge.runtime.llm.sampling import GenerationConfig, Sampler
from visionllm_edge.runtime.llm.sequence import Group, TokenSequence
from visionllm_edge.runtime.llm.session import DecoderSession, StepOutput

__all__ = [
    "AnswerFormat",
    "Choices",
    "DecoderSession",
    "EmbeddingTable",
    "Generation",
    "GenerationConfig",
    "Group",
    "Listing",
    "Sampler",
    "Step",
    "StepOutput",
    "SuperLink",
    "TokenSequence",
]
