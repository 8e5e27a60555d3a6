"""The half-precision control: it rounds like a GPU, adds up in fp32, and runs every stage."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.export.small_checkpoint import write_small_checkpoint
from visionllm_edge.export.checkpoint import Checkpoint, load_model
from visionllm_edge.export.half_control import HALF_DTYPES, run_in_half
from visionllm_edge.export.stages import stages_of
from visionllm_edge.export.stages.examples import Examples

UNIT = {"fp16": 2.0**-11, "bf16": 2.0**-8}


@pytest.mark.parametrize("precision", HALF_DTYPES)
def test_a_long_sum_is_rounded_once(precision: str) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(4096, 8, bias=False), torch.rand(1, 4096)
    nn.init.uniform_(layer.weight, 0.5, 1.0)
    half = HALF_DTYPES[precision]
    (got,) = run_in_half(layer, {"x": x}, precision)
    exact = x.to(half).double() @ layer.weight.detach().to(half).double().T
    assert float(((got - exact) / exact).abs().max()) <= UNIT[precision] * 1.01
    assert layer.weight.dtype == torch.float32


@pytest.mark.parametrize("precision", HALF_DTYPES)
def test_every_stage_runs_and_differs_a_little(
    precision: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = write_small_checkpoint(tmp_path_factory.mktemp("small") / "checkpoint")
    model = load_model(Checkpoint(folder))
    examples = Examples(model)
    for stage in stages_of(model.config):
        bucket = stage.bucket_list(model.config)[0]
        module = stage.module(model, bucket)
        inputs = stage.inputs(examples, bucket, stage.trace_case)
        with torch.no_grad():
            expected = module(*inputs.values())
        expected = (expected,) if isinstance(expected, torch.Tensor) else expected
        for got, true in zip(run_in_half(module, inputs, precision), expected, strict=True):
            scale = float(true.abs().max())
            error = float((got - true).abs().max()) / scale
            assert got.dtype == torch.float32
            assert 0 < error < 40 * UNIT[precision], stage.name
