"""What a language decoder is built from: stored weights, a precision, calibration sequences."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from visionllm_edge.export.llm.decoder_weights import layer_linears
from visionllm_edge.export.llm.hf_folder import VisionLLMWeights
from visionllm_edge.export.llm.weights import EMBEDDING, LlmWeights
from visionllm_edge.export.quantize.calibration import (
    Calibration,
    embed_ids,
    text_calibration,
    text_id,
)
from visionllm_edge.export.quantize.picture_calibration import picture_calibration
from visionllm_edge.export.quantize.policy import LlmPrecision
from visionllm_edge.runtime.errors import ConfigError
from visionllm_edge.runtime.manifest import PromptSpec
from visionllm_edge.runtime.prompts import Text, Turn, conversation
from visionllm_edge.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from visionllm_edge.export.checkpoint import Checkpoint
    from visionllm_edge.export.components.model import VisionLLM
    from visionllm_edge.export.tokenizer import ConvertedTokenizer

__all__ = ["DecoderPlan", "plan_for_checkpoint", "plan_for_llm", "rounds_again"]

_QUESTION = "Which birds sing at night?"
# Parts of a VisionLLM v2 that rows of the language model's input come from.
_PICTURED = ("vis_encoder.", "vl_bridge.", "emb_embeddings_det.")


@dataclass(frozen=True)
class DecoderPlan:
    """What to build the decoder from.

    Attributes:
        source: the stored weights.
        precision: of every part.
        calibration: makes the sequences of the activation-aware search and of the ranges of a cache
            of int8 when they are needed; None where the precision needs none.
        calibration_id: what the sequences depend on besides the language model; empty without.
    """

    source: LlmWeights
    precision: LlmPrecision
    calibration: Callable[[], Calibration] | None = None
    calibration_id: str = ""


def plan_for_llm(
    source: LlmWeights,
    tokenizer: ConvertedTokenizer,
    prompt: PromptSpec,
    precision: LlmPrecision,
    calibration_text: Path | None,
) -> DecoderPlan:
    """A language model alone: calibrated on text, ranges also on how its conversations begin.

    Raises:
        ConfigError: a calibration text that cannot be read, or that nothing would read.
    """
    precision = _as_stored(source, precision)
    if not _needs_calibration(precision, calibration_text):
        return DecoderPlan(source, precision)

    def calibration() -> Calibration:
        words = Tokenizer(
            tokenizer.definition,
            controls=tokenizer.controls,
            bos=tokenizer.bos,
            eos=tokenizer.eos,
            space_after_control=tokenizer.space_after_control,
        )
        read = text_calibration(
            source, lambda text: words.encode([Text(text)], bos=False), calibration_text
        )
        if precision.cache != "int8":
            return read
        asked = conversation(
            [Turn(_QUESTION)], image=False, template=prompt.template, system=prompt.system
        )
        kept = words.encode(asked)[: source.config.max_position_embeddings]
        opening = embed_ids(source.tensor(EMBEDDING), np.array(kept, np.int64))
        return dataclasses.replace(read, openings=(opening,))

    made_of = text_id(calibration_text)
    if precision.cache == "int8":
        made_of += f" {prompt.template} {prompt.system} {tokenizer.bos}"
    return DecoderPlan(source, precision, calibration, made_of)


def plan_for_checkpoint(
    checkpoint: Checkpoint,
    model: VisionLLM,
    tokenizer: ConvertedTokenizer,
    precision: LlmPrecision,
    calibration_text: Path | None,
) -> DecoderPlan:
    """The decoder of a VisionLLM v2: calibrated on text and on what pictures become.

    Raises:
        ConfigError: a calibration text that cannot be read, or that nothing would read.
    """
    source = VisionLLMWeights(checkpoint)
    precision = _as_stored(source, precision)
    if not _needs_calibration(precision, calibration_text):
        return DecoderPlan(source, precision)
    pictured = checkpoint.fingerprint(_PICTURED)
    return DecoderPlan(
        source,
        precision,
        lambda: picture_calibration(source, model, tokenizer, calibration_text),
        f"{text_id(calibration_text)} {pictured}",
    )


def rounds_again(plan: DecoderPlan) -> bool:
    """Whether blocks of the source are given up for others, which `stored` would keep."""
    if not plan.precision.quantized or plan.precision.method == "stored":
        return False
    name = layer_linears(0)["qkv"][0]
    kept = plan.source.quantized(name)
    return kept is None and plan.source.quantized(name, minimums=True) is not None


def _as_stored(source: LlmWeights, precision: LlmPrecision) -> LlmPrecision:
    """The precision, with the bits and blocks that the source has already: those are kept.

    Raises:
        ConfigError: what is stored is asked for, and there is none.
    """
    if not precision.quantized:
        return precision
    as_stored = precision.method == "stored"
    stored = source.quantized(layer_linears(0)["qkv"][0], minimums=as_stored)
    if stored is None and as_stored:
        raise ConfigError(
            "--llm-precision stored: expected a language model in blocks of its own (GGUF in Q4_0, "
            f"Q4_1 or Q8_0; AWQ, GPTQ or compressed-tensors), got '{source.name}', whose layers "
            "hold none of them. Choose int8, int4 or int4-awq."
        )
    if stored is None:
        return precision
    return dataclasses.replace(
        precision,
        weights="int4" if stored.bits == 4 else "int8",
        method=precision.method if as_stored or stored.bits == 4 else "rtn",
        block_size=stored.block_size,
    )


def _needs_calibration(precision: LlmPrecision, calibration_text: Path | None) -> bool:
    if calibration_text is not None and not precision.calibrated:
        raise ConfigError(
            "--calibration-text: expected --llm-precision int4-awq or --llm-cache int8, which read "
            f"one, got {precision.option} and {precision.cache}. Leave it out, or choose one of "
            "them."
        )
    return precision.calibrated
