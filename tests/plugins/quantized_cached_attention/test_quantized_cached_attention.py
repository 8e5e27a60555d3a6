"""Attention over an int8 cache: reference, ONNX function and CPU kernel agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tests.plugins.cached_attention.cases import STEPS, Inputs, run_session
from tests.plugins.cached_attention.cases import make_inputs as make_float_inputs
from tests.plugins.conftest import PlantFault
from tests.plugins.cpu.nodes import open_session
from visionllm_edge.plugins.cached_attention.reference import cached_attention
from visionllm_edge.plugins.cpu.library import instruction_set
from visionllm_edge.plugins.quantized_cached_attention.reference import (
    quantized_cached_attention,
)
from visionllm_edge.plugins.quantized_cached_attention.spec import QUANTIZED_CACHED_ATTENTION
from visionllm_edge.plugins.semantic_op import DOMAIN

SCALE = 0.3
_TYPES = {
    "float32": TensorProto.FLOAT,
    "int8": TensorProto.INT8,
    "int64": TensorProto.INT64,
}


@pytest.fixture(params=["avx512vnni", "avx512", "avx2", "portable"])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, cpu_library: Path) -> str:
    """Ask for one instruction set; skipped where the processor does not have it."""
    name: str = request.param
    monkeypatch.setenv("VISIONLLM_EDGE_CPU_ISA", name)
    if instruction_set(cpu_library) != name:
        pytest.skip(f"this processor has no {name}")
    return name


def make_inputs(start: int, length: int, *, kv_heads: int, depth: int = 8, **sizes: Any) -> Inputs:
    """Random inputs; scales differ per channel, and let some numbers be cut off."""
    inputs = make_float_inputs(start, length, kv_heads=kv_heads, depth=depth, **sizes)
    rng = np.random.default_rng(7)
    for name in ("key", "value"):
        past = rng.integers(-127, 128, inputs[f"past_{name}"].shape, dtype=np.int8)
        inputs[f"past_{name}"] = past
        steps = rng.uniform(0.01, 0.04, (kv_heads, depth)).astype(np.float32)
        inputs[f"{name}_scale"] = steps
    return inputs


def one_node_model(*, heads: int, kv_heads: int, opset: int = 21) -> onnx.ModelProto:
    op = QUANTIZED_CACHED_ATTENTION
    node = helper.make_node(
        op.name,
        [port.name for port in op.inputs],
        [port.name for port in op.outputs],
        domain=DOMAIN,
        num_heads=heads,
        kv_num_heads=kv_heads,
        scale=SCALE,
    )
    inputs, outputs = (
        [
            helper.make_tensor_value_info(
                port.name, _TYPES[port.dtypes[0]], [None] * len(port.shape)
            )
            for port in ports
        ]
        for ports in (op.inputs, op.outputs)
    )
    model = helper.make_model(
        helper.make_graph([node], "one_node", inputs, outputs),
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)],
        functions=[op.onnx_function(opset=opset)],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def reference(inputs: Inputs, *, heads: int, kv_heads: int) -> tuple[NDArray[Any], ...]:
    return quantized_cached_attention(
        *inputs.values(), num_heads=heads, kv_num_heads=kv_heads, scale=SCALE
    )


def check(
    library: Path | None,
    start: int,
    length: int,
    *,
    heads: int = 4,
    kv_heads: int = 2,
    in_place: bool = True,
    **sizes: Any,
) -> None:
    inputs = make_inputs(start, length, heads=heads, kv_heads=kv_heads, **sizes)
    attention, keys, values = reference(inputs, heads=heads, kv_heads=kv_heads)
    session = open_session(one_node_model(heads=heads, kv_heads=kv_heads), library)
    results = run_session(session, inputs, in_place=in_place)
    case = f"{start}+{length}"
    same = True
    for got, want in zip(results[1:], (keys, values), strict=True):
        # Next to the middle between two steps the last bit of fp32 decides.
        apart = np.abs(got.astype(int) - want)
        assert apart.max() <= 1, case
        assert (apart != 0).mean() < 1e-3, case
        same = same and not apart.any()
    # Only a step that went the other way may show: it moves a score by about its scale.
    limit = 5e-5 if same else 2e-2
    np.testing.assert_allclose(results[0], attention, atol=limit, err_msg=case)


def test_reference_with_fine_steps_is_cached_attention() -> None:
    inputs = make_inputs(13, 5, heads=4, kv_heads=2)
    for name in ("key", "value"):
        inputs[f"{name}_scale"] = np.full((2, 8), 1e-2, dtype=np.float32)
    rough = reference(inputs, heads=4, kv_heads=2)[0]
    fine = {name: inputs[name] for name in list(inputs)[:8]}
    for name in ("past_key", "past_value"):
        fine[name] = (inputs[name] * np.float32(1e-2)).astype(np.float32)
    exact = cached_attention(*fine.values(), num_heads=4, kv_num_heads=2, scale=SCALE)[0]
    # New rows reach beyond 127 steps of 0.01 now and then: cut off, so close and not equal.
    assert 0 < np.abs(rough - exact).max() < 1
    for name in ("key", "value"):
        inputs[name] = np.clip(inputs[name], -0.8, 0.8)
        fine[name] = inputs[name]
    rough = reference(inputs, heads=4, kv_heads=2)[0]
    exact = cached_attention(*fine.values(), num_heads=4, kv_num_heads=2, scale=SCALE)[0]
    np.testing.assert_allclose(rough, exact, atol=1e-2)


def test_reference_refuses_an_overflow() -> None:
    with pytest.raises(ValueError, match="81 rows do not fit into a cache of 80"):
        reference(make_inputs(78, 3, heads=4, kv_heads=2), heads=4, kv_heads=2)


@pytest.mark.parametrize("in_place", [False, True], ids=["copied cache", "shared cache"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (4, 1)])
def test_function_equals_reference(heads: int, kv_heads: int, in_place: bool) -> None:
    for start, length in STEPS:
        check(None, start, length, heads=heads, kv_heads=kv_heads, in_place=in_place)


def test_opsets_of_the_function() -> None:
    for opset in (18, 24):
        assert one_node_model(heads=4, kv_heads=2, opset=opset).functions[0].node
    with pytest.raises(ValueError, match=r"opset expected 18\.\.24, got 17"):
        QUANTIZED_CACHED_ATTENTION.onnx_function(opset=17)


@pytest.mark.usefixtures("isa")
class TestEveryInstructionSet:
    @pytest.mark.parametrize("in_place", [False, True], ids=["copied cache", "shared cache"])
    @pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (17, 1)])
    def test_steps(self, cpu_library: Path, heads: int, kv_heads: int, in_place: bool) -> None:
        for start, length in STEPS:
            check(
                cpu_library, start, length,
                heads=heads, kv_heads=kv_heads, in_place=in_place, batch=2,
            )  # fmt: skip

    @pytest.mark.parametrize("depth", [2, 12, 16, 20, 64, 80, 128, 264])
    def test_head_sizes(self, cpu_library: Path, depth: int) -> None:
        for start, length in ((0, 3), (20, 1), (37, 40)):
            check(cpu_library, start, length, depth=depth)

    @pytest.mark.parametrize(("start", "length"), [(127, 1), (500, 1), (900, 5), (300, 65)])
    def test_long_contexts(self, cpu_library: Path, start: int, length: int) -> None:
        check(cpu_library, start, length, depth=32, capacity=start + length)


def test_writing_is_rounding_to_even_and_cutting_off(cpu_library: Path) -> None:
    """One new row of value numbers whose steps are exact: no tolerance."""
    steps = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, 127.4, 500, -127.6, -1e9, 0, 3, -3])
    inputs = make_inputs(2, 1, heads=1, kv_heads=1, depth=14)
    inputs["value_scale"][:] = 0.25
    inputs["value"] = (steps * 0.25).astype(np.float32)[None, None]
    expected = [0, 2, 2, 0, -2, -2, 126, 127, 127, -127, -127, 0, 3, -3]
    assert reference(inputs, heads=1, kv_heads=1)[2][0, 0, 2].tolist() == expected
    for library in (cpu_library, None):
        session = open_session(one_node_model(heads=1, kv_heads=1), library)
        assert session.run(None, inputs)[2][0, 0, 2].tolist() == expected


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("key_scale", np.zeros((2, 8), "f"), "'key_scale' expected numbers above 0, got 0"),
        ("value_scale", np.full((2, 8), np.nan, "f"), "'value_scale' expected numbers above 0"),
        ("key_scale", np.ones((1, 8), "f"), r"'key_scale' expected \[2, 8\], got \[1, 8\]"),
        ("past_length", np.array([76]), "past_length 76 and 5 new rows do not fit"),
    ],
)
def test_refusals(cpu_library: Path, name: str, array: NDArray[Any], message: str) -> None:
    inputs = make_inputs(13, 5, heads=4, kv_heads=2) | {name: array}
    session = open_session(one_node_model(heads=4, kv_heads=2), cpu_library)
    with pytest.raises(Exception, match=f"QuantizedCachedAttention: .*{message}"):
        session.run(None, inputs)


def test_the_comparison_sees_scales_of_the_wrong_head(plant_fault: PlantFault) -> None:
    library = plant_fault(
        "cached_attention/cpu_kernel.h",
        "of_head(call.key_scale, task.kv_head, call.depth)",
        "of_head(call.key_scale, 0, call.depth)",
    )
    with pytest.raises(AssertionError):
        check(library, 40, 5)


def test_no_kernel_no_matter(cpu_library: Path) -> None:
    """The same file with the kernel and without."""
    inputs = make_inputs(20, 9, heads=6, kv_heads=2, depth=16)
    model = one_node_model(heads=6, kv_heads=2)
    with_kernel, with_function = (
        open_session(model, library).run(None, inputs)[0] for library in (cpu_library, None)
    )
    np.testing.assert_allclose(with_kernel, with_function, atol=2e-5)
