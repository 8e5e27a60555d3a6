"""End-to-end check of a language model: the runtime goes on with a text, torch judges every token.

Prompt, tokenizer, embedding table, session, and cache are those of the bundle. The decoder of the
judge is torch in float64 with the bundle's own weights. Where two tokens are almost equally likely,
two right implementations may pick either, so a token is right if its true logit is below the best
one by no more than both could be off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from visionllm_edge.export.config import LlmConfig
from visionllm_edge.export.llm.bundle_weights import BundleWeights
from visionllm_edge.export.llm.decoder_parity import LARGE_WEIGHTS, weight_count
from visionllm_edge.export.llm.streamed import CONTROL, ROUNDED, TRUTH, DecoderCase, run_streamed
from visionllm_edge.export.parity import CONTROL_FACTOR, FLOORS
from visionllm_edge.runtime.backends import StageOptions, load_backend
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.errors import ParityError
from visionllm_edge.runtime.llm.embeddings import EmbeddingTable
from visionllm_edge.runtime.llm.sequence import TokenSequence
from visionllm_edge.runtime.llm.session import DecoderSession
from visionllm_edge.runtime.memory import available_bytes, plan_memory
from visionllm_edge.runtime.prompts import Turn, conversation
from visionllm_edge.runtime.tokenizer import Tokenizer

__all__ = ["check_language_model"]

_QUESTION = "What is the capital of France, and what is the city known for?"
_TOKENS = 16
_CAPACITY = 256


def check_language_model(bundle: Bundle, config: LlmConfig) -> dict[str, Any]:
    """Answer a question by the bundle and compare every token with torch.

    Args:
        bundle: readable, not necessarily published yet.
        config: of the language model.

    Returns:
        A report of plain JSON types.

    Raises:
        ParityError: a token that torch would not have picked.
    """
    manifest = bundle.manifest
    spec = manifest.tokenizer
    tokenizer = Tokenizer.from_file(
        bundle.file(spec.file),
        controls=spec.controls,
        bos=spec.bos,
        eos=spec.eos,
        space_after_control=spec.space_after_control,
    )
    turns = [Turn(_QUESTION)]
    segments = conversation(
        turns, image=False, template=manifest.prompt.template, system=manifest.prompt.system
    )
    capacity = min(_CAPACITY, manifest.model.llm.max_positions)
    needed, free = plan_memory(bundle, context=capacity, buckets=1).total, available_bytes()
    if free is not None and needed > free:
        reason = f"not run: needs {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free"
        return {"question": _QUESTION, "compared_tokens": 0, "summary": reason}
    table = EmbeddingTable.from_bundle(bundle)
    prompt = tokenizer.encode(segments)[: capacity - _TOKENS]
    answer = _greedy(bundle, table, prompt, capacity)
    report: dict[str, Any] = {"question": _QUESTION, "answer": tokenizer.decode(answer)}
    if weight_count(config) >= LARGE_WEIGHTS:
        return report | {"compared_tokens": 0, "summary": f"{len(answer)} tokens, not compared"}
    agreed = _judge(bundle, config, table, prompt, answer)
    return report | {
        "compared_tokens": len(answer),
        "equal_to_torch": agreed,
        "summary": f"{agreed} of {len(answer)} tokens as in torch",
    }


def _greedy(
    bundle: Bundle, table: EmbeddingTable, prompt: Sequence[int], capacity: int
) -> list[int]:
    name = "llm_decoder"
    backend = load_backend(bundle.manifest.target.backend)
    runner = backend.load_stage(
        bundle.stage_model(name),
        bundle.manifest.stages[name].ports(name),
        StageOptions(bundle=bundle, threads=torch.get_num_threads()),
    )
    session = DecoderSession(runner, table, capacity=capacity)
    sequence = TokenSequence(links={}, names={}, im_patch=-1)
    sequence.append(prompt)
    answer: list[int] = []
    for _ in range(_TOKENS):
        token = int(np.argmax(session.run(sequence).logits_V))
        answer.append(token)
        sequence.append([token])
    return answer


def _judge(
    bundle: Bundle,
    config: LlmConfig,
    table: EmbeddingTable,
    prompt: Sequence[int],
    answer: Sequence[int],
) -> int:
    """How many tokens are the ones that torch likes best; the others must be close to it."""
    ids = [*prompt, *answer[:-1]]
    wanted = tuple(range(len(prompt) - 1, len(ids)))
    case = DecoderCase(
        table.rows(ids),
        np.zeros((0, config.hidden_size), np.float32),
        len(ids),
        wanted,
        tuple(range(len(wanted))),
    )
    weights = BundleWeights(bundle)
    cache, scales = bundle.manifest.model.llm.cache, weights.cache_scales()
    control = ROUNDED if weights.quantized or scales is not None else CONTROL
    (run,) = run_streamed(
        weights, config, [case], [TRUTH, control], cache=cache, cache_scales=scales
    )
    true, plain = (run.outputs[kind.name]["logits"].astype(np.float64) for kind in (TRUTH, control))
    floor = FLOORS[bundle.manifest.target.precision] * float(np.abs(true).max())
    allowed = CONTROL_FACTOR * float(np.abs(plain - true).max()) + floor
    equal = 0
    for place, token in enumerate(answer):
        best = int(np.argmax(true[place]))
        equal += token == best
        short = float(true[place, best] - true[place, token])
        # Both logits may be off, in opposite directions.
        if short > 2 * allowed:
            raise ParityError(
                f"end to end: token {place + 1} of the answer is {token}, expected {best}, whose "
                f"true logit is higher by {short:.3g} (allowed {2 * allowed:.3g}), although the "
                "stage is right. Nothing was published."
            )
    return equal
