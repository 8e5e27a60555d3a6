"""Runs of a small decoder: steps, inputs, torch's truth and control, and the gate between them."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import Tensor

from tests.export.llm.small_llama import CONFIG, BlockWeights, dequantized_llama, random_llama
from visionllm_edge.export.components.llm_decoder import Llama
from visionllm_edge.export.graph_session import GraphSession
from visionllm_edge.export.half_control import run_in_half
from visionllm_edge.export.llm.decoder_graph import decoder_ports
from visionllm_edge.export.llm.decoder_weights import BlockLinear
from visionllm_edge.export.parity import compare_outputs, require_parity
from visionllm_edge.export.passes.share_weights import WeightFile
from visionllm_edge.export.quantize.matrix import BlockQuantized
from visionllm_edge.runtime.backends.base import PAST_PREFIX, PRESENT_PREFIX
from visionllm_edge.runtime.ports import Array

__all__ = [
    "CAPACITY",
    "STEPS",
    "WIDE",
    "QuantisedOnce",
    "check",
    "in_blocks",
    "make_inputs",
    "run_graph",
    "run_torch",
]

CAPACITY = 80
WIDE = dataclasses.replace(
    CONFIG, hidden_size=128, intermediate_size=256, head_dim=32, max_position_embeddings=CAPACITY
)
"""Inputs that blocks of 128 divide."""

# Rows in the cache, rows of the step, hidden rows, logit rows: a token, a routing step of 1 + 4
# and of 1 + 64, a prompt, a step that fills the cache, and the whole context at once.
STEPS = {
    "token": (37, 1, [0], [0]),
    "routing": (59, 5, [1, 2, 3, 4], [3]),
    "wide routing": (11, 65, list(range(1, 65)), [63]),
    "prompt": (0, 40, [39], [0]),
    "guess": (3, 4, [0, 1, 2, 3], [0, 1, 2, 3]),
    "any order": (20, 6, [5, 0, 3], [2, 0]),
    "fills the cache": (75, 5, [4], [0]),
    "whole context": (0, 80, [79, 7], [1, 0]),
}


class QuantisedOnce(BlockWeights):
    """The same weights, quantised once for all tests that ask for the kind."""

    def linear(self, names: tuple[str, ...]) -> BlockLinear:
        return dataclasses.replace(super().linear(names), load=lambda: self._stacked(names))

    @lru_cache  # noqa: B019  (a handful of small matrices)
    def _stacked(self, names: tuple[str, ...]) -> BlockQuantized:
        state = self.llama.state_dict()
        return BlockQuantized.stack([self._quantized(state[name].numpy()) for name in names])

    __hash__ = object.__hash__


@lru_cache
def in_blocks(bits: int, size: int, asymmetric: bool = False) -> tuple[BlockWeights, Llama]:
    """A small decoder's weights in blocks, and torch with what they stand for."""
    weights = QuantisedOnce(random_llama(WIDE), bits, size, asymmetric)
    return weights, dequantized_llama(weights)


def make_inputs(llama: Llama, step: str, *, capacity: int = CAPACITY) -> dict[str, Tensor]:
    """Float32 inputs; the rows of the cache that nobody wrote hold large numbers."""
    start, length, hidden, scored = STEPS[step]
    config, source = llama.config, torch.Generator().manual_seed(start * 100 + length)
    inputs = {
        "inputs_embeds": torch.randn(1, length, config.hidden_size, generator=source),
        "past_length": torch.tensor([start]),
        "hidden_rows": torch.tensor(hidden),
        "logit_rows": torch.tensor(scored),
    }
    for port in decoder_ports(config).inputs[len(inputs) :]:
        shape = (1, config.num_key_value_heads, capacity, config.head_dim)
        cache = torch.randn(shape, generator=source)
        cache[:, :, start:] = 50.0
        inputs[port.name] = cache
    return inputs


def run_torch(llama: Llama, inputs: Mapping[str, Tensor], precision: str) -> dict[str, Array]:
    """The twin in ``fp64``, ``fp32``, ``fp16`` or ``bf16``."""
    if precision in ("fp16", "bf16"):
        outputs = run_in_half(llama, inputs, precision)
    else:
        wide = torch.float64 if precision == "fp64" else torch.float32
        module = copy.deepcopy(llama).to(wide)
        given = [t.to(wide) if t.is_floating_point() else t for t in inputs.values()]
        with torch.no_grad():
            outputs = module(*given)
    ports = decoder_ports(llama.config).outputs
    return {port.name: t.numpy() for port, t in zip(ports, outputs, strict=True)}


def run_graph(session: GraphSession, inputs: Mapping[str, Tensor], cache: str) -> dict[str, Array]:
    """A lowered or canonical graph as it stands."""
    return session.run(
        {
            name: tensor.numpy().astype(cache) if name.startswith(PAST_PREFIX) else tensor.numpy()
            for name, tensor in inputs.items()
        }
    )


class KernelSession(GraphSession):
    """A graph as the runtime loads it: rewritten by ONNX Runtime, with our kernels."""

    def __init__(self, model: ir.Model, library: Path) -> None:
        self.name = str(model.graph.name)
        self._folder = tempfile.TemporaryDirectory(prefix="visionllm-edge-")
        folder = Path(self._folder.name)
        with WeightFile(folder / "graph.weights") as weights:
            weights.take(model)
            ir.save(model, folder / "graph.onnx")
        options = ort.SessionOptions()
        options.intra_op_num_threads = 2
        options.register_custom_ops_library(str(library))
        self._session = ort.InferenceSession(
            str(folder / "graph.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self.outputs = [value.name or "" for value in self._session.get_outputs()]


def check(
    model: ir.Model,
    llama: Llama,
    *,
    precision: str = "fp32",
    steps: Mapping[str, object] = STEPS,
    library: Path | None = None,
) -> None:
    """Run a graph at every step and hold it against torch with the rule of the gate.

    Args:
        model: not usable afterwards.
        llama: what it should compute.
        precision: of the control.
        steps: names out of `STEPS`.
        library: with our kernels; None runs the functions as they stand.

    Raises:
        ParityError: an output is wrong.
    """
    types = {value.name: value.dtype for value in model.graph.inputs}
    cache = {ir.DataType.FLOAT: "float32", ir.DataType.FLOAT16: "float16"}[
        types[f"{PAST_PREFIX}0.key"] or ir.DataType.FLOAT
    ]
    with (
        GraphSession(model, threads=1) if library is None else KernelSession(model, library)
    ) as session:
        for step in steps:
            inputs = make_inputs(llama, step)
            ours = run_graph(session, inputs, cache)
            truth = run_torch(llama, inputs, "fp64")
            control = run_torch(llama, inputs, precision)
            valid = STEPS[step][0] + STEPS[step][1]
            cut = [
                {
                    name: array[:, :, :valid] if name.startswith(PRESENT_PREFIX) else array
                    for name, array in outputs.items()
                }
                for outputs in (ours, truth, control)
            ]
            report = compare_outputs(*cut, precision=precision)
            assert np.isfinite([entry.limit for entry in report]).all()
            require_parity(f"{model.graph.name}, {step}", report)
