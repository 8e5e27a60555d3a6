"""The canonical decoder: right against torch in every form of its linears, small and lazy."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from tests.export.llm.decoder_runs import STEPS, WIDE, check, in_blocks, make_inputs, run_graph
from tests.export.llm.small_llama import (
    CONFIG,
    BlockWeights,
    dense_weights,
    random_llama,
)
from tests.export.passes.graphs import op_list
from visionllm_edge.export.graph_session import GraphSession
from visionllm_edge.export.llm.decoder_graph import decoder_graph, decoder_ports
from visionllm_edge.export.llm.decoder_weights import (
    BlockLinear,
    DenseLinear,
    DenseWeights,
    StateDict,
    decoder_linears,
)
from visionllm_edge.export.lowering import lower
from visionllm_edge.export.passes.lower_quantized_linear import set_accuracy_level
from visionllm_edge.export.passes.share_weights import WeightFile
from visionllm_edge.plugins.cpu.library import find_library
from visionllm_edge.plugins.semantic_op import DOMAIN
from visionllm_edge.runtime.errors import ParityError
from visionllm_edge.runtime.targets import TARGETS

CPU = TARGETS["cpu"]


def _config(**changes: Any) -> Any:
    return dataclasses.replace(CONFIG, max_position_embeddings=80, **changes)


def test_the_ends_are_the_ports_of_the_stage() -> None:
    config = _config()
    model = decoder_graph(config, dense_weights(random_llama(config)))
    ports = decoder_ports(config)
    for side, values in ((ports.inputs, model.graph.inputs), (ports.outputs, model.graph.outputs)):
        assert [value.name for value in values] == [port.name for port in side]
        for value, port in zip(values, side, strict=True):
            shape = [axis if isinstance(axis, int) else axis.value for axis in value.shape or ()]
            assert (shape, str(value.dtype).lower()) == (list(port.shape), _short(port.dtype))
    assert {node.domain for node in model.graph} == {"", DOMAIN}
    assert all(value.dtype is not None for node in model.graph for value in node.outputs)


def _short(dtype: str) -> str:
    return {"float32": "float"}.get(dtype, dtype)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 4, "rope_theta": 500.0},
        {"head_dim": 32},
        {"num_hidden_layers": 1},
    ],
    ids=["grouped", "plain", "wide heads", "one layer"],
)
@pytest.mark.parametrize("form", ["canonical", "cpu_kernel", "group_query_attention"])
def test_every_step_equals_torch(changes: dict[str, Any], form: str) -> None:
    """The forms for ONNX Runtime without our kernels, that is: their functions."""
    llama = random_llama(_config(**changes))
    model = decoder_graph(llama.config, dense_weights(llama))
    if form != "canonical":
        entries = lower(model, CPU, prefer={"CachedAttention": form})
        forms = {entry.op: entry.form for entry in entries}
        assert forms == {"CachedAttention": form, "GatedSilu": "cpu_kernel"}
    check(model, llama)


BLOCKS = pytest.mark.parametrize(
    ("bits", "size", "asymmetric"),
    [(4, 32, False), (4, 128, False), (8, 64, False), (4, 64, True)],
    ids=["int4 of 32", "int4 of 128", "int8 of 64", "int4 with zero points"],
)
FORMS = ("canonical", "cpu_kernel", "dequantize_linear")


@BLOCKS
@pytest.mark.parametrize("form", FORMS)
def test_weights_in_blocks_equal_torch_with_the_same_weights(
    form: str, bits: int, size: int, asymmetric: bool
) -> None:
    weights, true = in_blocks(bits, size, asymmetric)
    model = decoder_graph(WIDE, weights, accuracy_level=1)
    if form != "canonical":
        prefer = {"QuantizedLinear": form}
        forms = {entry.op: entry.form for entry in lower(model, CPU, prefer=prefer)}
        assert forms["QuantizedLinear"] == form
        assert ("QuantizedLinear" in op_list(model)) is (form == "cpu_kernel")
    # A pair of steps each: what differs between steps is not in the linears.
    check(model, true, steps={s: STEPS[s] for s in ("token", "any order")})


@pytest.mark.parametrize(
    ("bits", "size", "asymmetric"), [(0, 0, False), (4, 32, False), (4, 64, True), (8, 128, False)]
)
def test_with_our_kernels_every_step_equals_torch(bits: int, size: int, asymmetric: bool) -> None:
    library = find_library()
    if library is None:
        pytest.skip("no library of CPU kernels is installed")
    if bits:
        weights, true = in_blocks(bits, size, asymmetric)
        model = decoder_graph(WIDE, weights, accuracy_level=1)
    else:
        true = random_llama(WIDE)
        model = decoder_graph(WIDE, dense_weights(true))
    lower(model, CPU)
    check(model, true, library=library)


def test_a_level_that_rounds_activations_is_seen_and_can_be_taken_back() -> None:
    weights, true = in_blocks(4, 32)
    model = decoder_graph(WIDE, weights, accuracy_level=4)
    lower(model, CPU)
    one = {"token": STEPS["token"]}
    with pytest.raises(ParityError, match="is wrong"):
        check(model.clone(), true, steps=one)
    assert set_accuracy_level(model, 1) == len(decoder_linears(WIDE))
    check(model, true, steps=one)


class _OtherOrder:
    """Weights whose named stack is the other way round."""

    def __init__(self, weights: BlockWeights, part: str) -> None:
        self.norm, self._linear, self._part = weights.norm, weights.linear, part

    def linear(self, names: tuple[str, ...]) -> BlockLinear:
        stack = names if self._part not in names[0] else (*names[:-2], names[-1], names[-2])
        return self._linear(stack)


@pytest.mark.parametrize("fault", ["k_proj", "gate_proj", "offset left out"])
def test_a_planted_fault_is_refused(fault: str) -> None:
    """Keys taken for values, the gate for what it gates, and zero points that nobody adds."""
    weights, true = in_blocks(8, 32, asymmetric=fault == "offset left out")
    part = {"k_proj": "self_attn.q_proj", "gate_proj": "mlp.gate_proj"}.get(fault, "none")
    model = decoder_graph(WIDE, _OtherOrder(weights, part), accuracy_level=1)
    if fault == "offset left out":
        add = {node.name: node for node in model.graph}["model.layers.0.mlp.down_proj"]
        assert add.op_type == "Add"
        add.replace_input_with(1, add.inputs[0])
    with pytest.raises(ParityError, match=r"output '(logits|hidden)' is wrong"):
        check(model, true, steps={"any order": STEPS["any order"]})


def test_onnx_runtime_makes_one_operator_of_a_norm_and_of_a_linear(tmp_path: Path) -> None:
    model = decoder_graph(WIDE, in_blocks(4, 32)[0])
    lower(model, CPU)
    ops = _optimised_ops(model, tmp_path)
    layers = WIDE.num_hidden_layers
    assert ops.count("SimplifiedLayerNormalization") == 2 * layers + 1
    assert ops.count("MatMulNBits") == 4 * layers + 1
    assert ops.count("GroupQueryAttention") == layers
    assert not {"Pow", "Sqrt", "ReduceMean", "Sigmoid", "DequantizeLinear"} & set(ops)


def test_the_portable_form_is_fused_as_well(tmp_path: Path) -> None:
    model = decoder_graph(WIDE, in_blocks(4, 32)[0])
    lower(model, CPU, prefer={"QuantizedLinear": "dequantize_linear"})
    ops = _optimised_ops(model, tmp_path)
    assert "DequantizeLinear" not in ops
    assert ops.count("MatMulNBits") == 4 * WIDE.num_hidden_layers + 1


def _optimised_ops(model: ir.Model, folder: Path) -> list[str]:
    with WeightFile(folder / "m.weights") as file:
        file.take(model)
    ir.save(model, folder / "m.onnx")
    onnx.checker.check_model(str(folder / "m.onnx"), full_check=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.intra_op_num_threads = 1
    ort.InferenceSession(str(folder / "m.onnx"), options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(str(folder / "optimised.onnx"), load_external_data=False)
    return [node.op_type for node in optimised.graph.node]


def test_the_last_layer_works_on_the_wanted_rows_only() -> None:
    model = decoder_graph(_config(), dense_weights(random_llama(_config())))
    last, first = (f"model.layers.{layer}." for layer in (1, 0))
    rows = {
        value.name: list(value.shape or ())[1]
        for node in model.graph
        for value in node.outputs
        if len(value.shape or ()) == 3
    }
    assert str(rows[f"{first}mlp.down_proj"]) == "s"
    for name in ("self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"):
        assert str(rows[last + name]) == "r"
    assert str(rows["lm_head"]) == "l"


def test_a_graph_of_7b_is_built_without_reading_a_matrix() -> None:
    config = dataclasses.replace(
        CONFIG, vocab_size=32_000, hidden_size=4096, intermediate_size=11_008,
        num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32, head_dim=128,
        max_position_embeddings=4096,
    )  # fmt: skip

    class Weights:
        def norm(self, name: str) -> Any:
            return np.ones(config.hidden_size, np.float32)

        def linear(self, names: tuple[str, ...]) -> DenseLinear:
            def load() -> Any:
                raise AssertionError(f"{names} was read")

            return dataclasses.replace(sizes.linear(names), load=load)

    sizes = DenseWeights(StateDict(config, {}))
    started = time.perf_counter()
    model = decoder_graph(config, Weights())
    assert time.perf_counter() - started < 5.0
    nbytes = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    assert 26e9 < nbytes < 28e9


def test_one_quantised_matrix_is_in_memory_at_a_time(tmp_path: Path) -> None:
    weights = BlockWeights(random_llama(WIDE), 4, 32, asymmetric=True)
    model = decoder_graph(WIDE, weights)
    with WeightFile(tmp_path / "w") as file:
        file.take(model)
    assert weights.most_alive == 1


def test_a_cache_in_half_precision_is_rounded_and_nothing_else() -> None:
    weights, true = in_blocks(8, 32)
    inputs = make_inputs(true, "routing")
    for name in inputs:
        if name.startswith("past_key_values"):
            inputs[name] = inputs[name].half().float()
    outputs = {}
    for cache in ("float32", "float16"):
        model = decoder_graph(WIDE, weights, cache=cache, accuracy_level=1)
        lower(model, CPU)
        types = {v.name: v.dtype for v in model.graph.outputs}
        assert str(types["present.0.key"]) == cache.removesuffix("32").upper()
        with GraphSession(model, threads=1) as session:
            outputs[cache] = run_graph(session, inputs, cache)
    valid = sum(STEPS["routing"][:2])
    for name, full in outputs["float32"].items():
        half = outputs["float16"][name]
        if name.startswith("present"):
            full, half = full[:, :, :valid], half[:, :, :valid]
        difference = np.abs(half.astype(np.float64) - full.astype(np.float64)).max()
        assert 0 < difference < 2e-3 * np.abs(full).max(), name


def test_two_builds_are_the_same() -> None:
    texts = [
        ir.serde.serialize_model(decoder_graph(WIDE, BlockWeights(random_llama(WIDE))))
        for _ in "ab"
    ]
    assert texts[0].SerializeToString(deterministic=True) == texts[1].SerializeToString(
        deterministic=True
    )
