"""Quantise a language model, layer by layer, into a folder that a stopped run goes on with.

One layer is in memory at a time, with `int4-awq` also the hidden states of the calibration
sequences. A layer's file carries a key made of the source, the precision, the calibration and our
own code; a second call with the same key takes it as it is.

Matrices that the source holds in blocks already are kept, whatever the precision asks for: rounding
them again could only lose. Blocks with a minimum, of GGUF's Q4_1, cost time per token where they
are kept, so only `stored` keeps them; what it finds in no blocks, or in several kinds that are
multiplied as one, becomes int8.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from visionllm_edge.export.llm.decoder_weights import HEAD
from visionllm_edge.export.quantize.activation_aware import ActivationAware
from visionllm_edge.export.quantize.layer import LINEARS, layer_names
from visionllm_edge.export.quantize.matrix import BlockQuantized, quantize_blocks
from visionllm_edge.export.quantize.policy import LlmPrecision, block_for
from visionllm_edge.export.quantize.store import QuantizedStore, is_complete, write_file
from visionllm_edge.runtime.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from visionllm_edge.export.llm.weights import LlmWeights
    from visionllm_edge.export.quantize.calibration import Calibration

__all__ = ["quantize_llm", "weights_key"]

_HEAD_BITS = 8

Note = Callable[[str], None]
Content = dict[str, "BlockQuantized | NDArray[np.float32]"]


def quantize_llm(
    weights: LlmWeights,
    precision: LlmPrecision,
    folder: Path,
    *,
    calibration: Calibration | None = None,
    progress: Note = lambda text: None,
) -> QuantizedStore:
    """Quantise every linear of a decoder.

    Args:
        weights: of the decoder.
        precision: int8 or int4.
        folder: for the files; made if it is not there. They are read as long as the result is used.
        calibration: sequences, for the activation-aware search only.
        progress: gets a line per layer.

    Raises:
        ConfigError: the activation-aware search without sequences.
        CheckpointError: a linear whose stored blocks cannot be stacked.
    """
    assert precision.quantized, "float32 weights are not quantised"
    if precision.method == "awq" and calibration is None:
        raise ConfigError(
            "int4-awq: expected calibration sequences, got none. Name a text with "
            "--calibration-text, or choose int4."
        )
    key = weights_key(weights, precision, calibration)
    search = None
    if precision.method == "awq":
        assert calibration is not None
        search = ActivationAware(weights, precision, calibration.sequences)
    files, layers = [], weights.config.num_hidden_layers
    for layer in range(layers):
        path = folder / f"layer_{layer:03d}.safetensors"
        files.append(path)
        if is_complete(path, key):
            progress(f"quantise: layer {layer + 1} of {layers} is there already")
            if search is not None:
                search.skip(layer)
            continue
        if search is not None and not _has_blocks(weights, layer):
            content, said = search.quantize(layer)
        else:
            if search is not None:
                search.skip(layer)
            content, said = _rounded(weights, precision, layer), ""
        write_file(path, key, content)
        progress(f"quantise: layer {layer + 1} of {layers}{said}")
    head = folder / "head.safetensors"
    if precision.head_for(weights.config.vocab_size, weights.config.hidden_size) == "int8":
        if not is_complete(head, key):
            write_file(head, key, _head(weights, precision))
            progress("quantise: head in int8")
        files.append(head)
    return QuantizedStore(weights, files)


def _has_blocks(weights: LlmWeights, layer: int) -> bool:
    """Whether the source holds any matrix of the layer in blocks: their grid cannot be scaled."""
    names = layer_names(layer)
    return any(
        weights.quantized(names[short]) is not None for stack in LINEARS.values() for short in stack
    )


def _rounded(weights: LlmWeights, precision: LlmPrecision, layer: int) -> Content:
    """A layer rounded to nearest, or as the source has it."""
    names, content = layer_names(layer), Content()
    for stack in LINEARS.values():
        official = [names[short] for short in stack]
        stored = [_kept(weights, precision, name) for name in official]
        kinds = {(blocks.bits, blocks.block_size) for blocks in stored if blocks is not None}
        if precision.method == "stored" and (len(kinds) != 1 or None in stored):
            stored, kinds = [None] * len(stack), {(8, precision.block_size)}
        if len(kinds) > 1:
            raise CheckpointError(
                f"layer {layer}: expected blocks of one kind in {', '.join(stack)}, got "
                f"{' and '.join(f'{bits} bits by {size}' for bits, size in sorted(kinds))}. "
                "These matrices are multiplied as one; quantise the checkpoint uniformly."
            )
        bits, size = kinds.pop() if kinds else (precision.bits, precision.block_size)
        for name, blocks in zip(official, stored, strict=True):
            content[name] = blocks or _round(_matrix(weights, name), bits, size)
    return content


def _kept(weights: LlmWeights, precision: LlmPrecision, name: str) -> BlockQuantized | None:
    """The source's own blocks of a matrix, where they stay."""
    return weights.quantized(name, minimums=precision.method == "stored")


def _head(weights: LlmWeights, precision: LlmPrecision) -> Content:
    stored = _kept(weights, precision, HEAD)
    return {HEAD: stored or _round(_matrix(weights, HEAD), _HEAD_BITS, precision.block_size)}


def _round(
    matrix: NDArray[np.float32], bits: int, block_size: int
) -> BlockQuantized | NDArray[np.float32]:
    block = block_for(matrix.shape[1], block_size)
    return matrix if block is None else quantize_blocks(matrix, bits, block)


def _matrix(weights: LlmWeights, name: str) -> NDArray[np.float32]:
    array: NDArray[np.float32] = weights.tensor(name).detach().to(torch.float32).numpy()
    return array


def weights_key(
    weights: LlmWeights, precision: LlmPrecision, calibration: Calibration | None
) -> str:
    """What the compiled weights depend on, and our own code.

    Args:
        weights: of the decoder.
        precision: of the linears and the head.
        calibration: counts for the activation-aware search only.
    """
    if precision.method != "awq":
        calibration = None
    parts = {
        "source": weights.fingerprint(),
        "precision": [precision.option, precision.block_size, precision.head],
        "calibration": "" if calibration is None else calibration.fingerprint,
        "code": _code_digest(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=1)
def _code_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
