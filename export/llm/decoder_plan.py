"""What a language decoder is built from: stored weights, a precision, calibration sequences."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from visionllm_edge.export.llm.decoder_weights import layer_linears
from visionllm_edge.export.llm.hf_folder import VisionLLMWeights
from visionllm_edge.export.llm.weights import LlmWeights
from visionllm_edge.export.quantize.calibration import Calibration, text_calibration, text_id
from visionllm_edge.export.quantize.picture_calibration import picture_calibration
from visionllm_edge.export.quantize.policy import LlmPrecision
from visionllm_edge.runtime.errors import ConfigError
from visionllm_edge.runtime.prompts import Text
from visionllm_edge.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from visionllm_edge.export.checkpoint import Checkpoint
    from visionllm_edge.export.components.model import VisionLLM
    from visionllm_edge.export.tokenizer import ConvertedTokenizer

__all__ = ["DecoderPlan", "plan_for_checkpoint", "plan_for_llm"]

# Parts of a VisionLLM v2 that rows of the language model's input come from.
_PICTURED = ("vis_encoder.", "vl_bridge.", "emb_embeddings_det.")


@dataclass(frozen=True)
class DecoderPlan:
    """What to build the decoder from.

    Attributes:
        source: the stored weights.
        precision: of every part.
        calibration: makes the sequences of the activation-aware search when they are needed; None
            where the precision needs none.
        calibration_id: what the sequences depend on besides the language model; empty without.
    """

    source: LlmWeights
    precision: LlmPrecision
    calibration: Callable[[], Calibration] | None = None
    calibration_id: str = ""


def plan_for_llm(
    source: LlmWeights,
    tokenizer: ConvertedTokenizer,
    precision: LlmPrecision,
    calibration_text: Path | None,
) -> DecoderPlan:
    """A language model alone: calibrated on text.

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
        return text_calibration(
            source, lambda text: words.encode([Text(text)], bos=False), calibration_text
        )

    return DecoderPlan(source, precision, calibration, text_id(calibration_text))


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
    if not _needs_calibration(precision, calibration_text):
        return DecoderPlan(source, precision)
    pictured = checkpoint.fingerprint(_PICTURED)
    return DecoderPlan(
        source,
        precision,
        lambda: picture_calibration(source, model, tokenizer, calibration_text),
        f"{text_id(calibration_text)} {pictured}",
    )


def _as_stored(source: LlmWeights, precision: LlmPrecision) -> LlmPrecision:
    """The precision, with the bits and blocks that the source has already: those are kept."""
    if not precision.quantized:
        return precision
    stored = source.quantized(layer_linears(0)["qkv"][0])
    if stored is None:
        return precision
    return dataclasses.replace(
        precision,
        weights="int4" if stored.bits == 4 else "int8",
        method=precision.method if stored.bits == 4 else "rtn",
        block_size=stored.block_size,
    )


def _needs_calibration(precision: LlmPrecision, calibration_text: Path | None) -> bool:
    if precision.method == "awq":
        return True
    if calibration_text is not None:
        raise ConfigError(
            f"--calibration-text: expected --llm-precision int4-awq, which reads one, got "
            f"{precision.option}. Leave it out, or choose int4-awq."
        )
    return False
