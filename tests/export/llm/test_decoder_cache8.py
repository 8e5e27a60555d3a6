"""The decoder with a cache of int8: a little off, in every form, and only a little."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from tests.export.llm.decoder_runs import (
    CAPACITY,
    STEPS,
    WIDE,
    in_blocks,
    make_inputs,
    run_torch,
)
from visionllm_edge.export.graph_session import GraphSession
from visionllm_edge.export.llm.decoder_graph import CacheScales, decoder_graph, decoder_ports
from visionllm_edge.export.lowering import lower, lowered_ports
from visionllm_edge.runtime.ports import Array
from visionllm_edge.runtime.targets import TARGETS

LIMIT = 0.02
"""Of the largest value. Half a step of 1/127 in every row and channel of two layers."""


def _cache_of(kind: str, outputs: dict[str, Array], layer: int) -> NDArray[np.float32]:
    return np.asarray(outputs[f"present.{layer}.{kind}"], np.float32)


def _scales(outputs: dict[str, Array]) -> CacheScales:
    """From the largest magnitude of every channel of a whole context."""
    out = []
    for layer in range(WIDE.num_hidden_layers):
        pair = [np.abs(_cache_of(kind, outputs, layer)[0]).max(axis=1) / 127 for kind in
                ("key", "value")]  # fmt: skip
        out.append((pair[0], pair[1]))
    return out


@pytest.fixture(scope="module")
def whole() -> dict[str, Array]:
    """Torch on the whole context from an empty cache."""
    _, true = in_blocks(8, 32)
    return run_torch(true, make_inputs(true, "whole context"), "fp32")


def _graph(
    whole: dict[str, Array],
    form: str,
    scales: CacheScales | None = None,
    precision: str = "fp32",
) -> ir.Model:
    weights, _ = in_blocks(8, 32)
    model = decoder_graph(
        WIDE, weights, cache="int8", accuracy_level=1, cache_scales=scales or _scales(whole)
    )
    if form != "canonical":
        entries = lower(model, TARGETS[form], precision=precision, capacity=CAPACITY)
        forms = {entry.op: entry.form for entry in entries}
        expected = "cpu_kernel" if form == "cpu" else "inline"
        assert forms["QuantizedCachedAttention"] == expected
    return model


def _run(model: ir.Model, whole: dict[str, Array], scales: CacheScales) -> dict[str, Array]:
    """Rows 59 to 63 behind the first 59 of the whole context."""
    _, true = in_blocks(8, 32)
    inputs = make_inputs(true, "routing")
    start, length = STEPS["routing"][:2]
    embeds = make_inputs(true, "whole context")["inputs_embeds"]
    inputs["inputs_embeds"] = embeds[:, start : start + length]
    feeds: dict[str, Any] = {name: tensor.numpy() for name, tensor in inputs.items()}
    for layer in range(WIDE.num_hidden_layers):
        for kind, scale in zip(("key", "value"), scales[layer], strict=True):
            rows = _cache_of(kind, whole, layer).copy()
            rows[:, :, start:] = 0
            codes = np.clip(np.rint(rows / scale[None, :, None]), -127, 127)
            feeds[f"past_key_values.{layer}.{kind}"] = codes.astype(np.int8)
    with GraphSession(model, threads=1) as session:
        return session.run(feeds)


def _true(whole: dict[str, Array]) -> dict[str, Array]:
    """The same step in torch, with a cache in fp32."""
    _, true = in_blocks(8, 32)
    start, length = STEPS["routing"][:2]
    inputs = make_inputs(true, "routing")
    embeds = make_inputs(true, "whole context")["inputs_embeds"]
    inputs["inputs_embeds"] = embeds[:, start : start + length]
    for name in inputs:
        if name.startswith("past_key_values"):
            cache = np.array(whole[name.replace("past_key_values", "present")])
            inputs[name] = inputs[name].new_tensor(cache)
    return run_torch(true, inputs, "fp32")


def _worst(got: dict[str, Array], true: dict[str, Array]) -> float:
    return max(
        float(np.abs(np.subtract(got[name], true[name])).max() / np.abs(true[name]).max())
        for name in ("logits", "hidden")
    )


@pytest.mark.parametrize("form", ["canonical", "cpu", "rtx-ada", "jetson-orin-jp6"])
def test_a_cache_of_bytes_is_a_little_off_in_every_form(form: str, whole: dict[str, Array]) -> None:
    scales = _scales(whole)
    got = _run(_graph(whole, form), whole, scales)
    true = _true(whole)
    assert 0 < _worst(got, true) < LIMIT
    start, length = STEPS["routing"][:2]
    for layer in range(WIDE.num_hidden_layers):
        for kind, scale in zip(("key", "value"), scales[layer], strict=True):
            codes = got[f"present.{layer}.{kind}"]
            assert codes.dtype == np.int8
            rows = np.multiply(codes[:, :, start : start + length], scale[None, :, None])
            expected = _cache_of(kind, true, layer)[:, :, start : start + length]
            # Half a step, and what the rows before it were off.
            assert float(np.abs(rows - expected).max()) < 3 * float(scale.max())


def test_scales_of_keys_and_values_taken_for_each_other_are_seen(whole: dict[str, Array]) -> None:
    scales = _scales(whole)
    wrong = [(value * 3, key) for key, value in scales]
    assert _worst(_run(_graph(whole, "canonical", wrong), whole, scales), _true(whole)) > LIMIT


def test_the_ends_stay_bytes_on_every_target() -> None:
    ports = decoder_ports(WIDE, cache="int8")
    for target, precision in (("cpu", "fp32"), ("rtx-ada", "fp16"), ("jetson-thor", "bf16")):
        lowered = lowered_ports(ports, TARGETS[target], precision)
        assert {p.dtype for p in lowered.inputs if p.name.startswith("past_key")} == {"int8"}


def test_a_cache_of_bytes_without_scales_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="comes with scales"):
        decoder_graph(WIDE, in_blocks(8, 32)[0], cache="int8")
