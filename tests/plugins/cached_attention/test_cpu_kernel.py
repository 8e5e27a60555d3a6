"""The CPU kernel of cached attention against the reference, on every instruction set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tests.plugins.cached_attention.cases import (
    STEPS,
    Inputs,
    make_inputs,
    one_node_model,
    reference,
    run_session,
)
from tests.plugins.conftest import PlantFault
from tests.plugins.cpu.nodes import ONNX_TYPES, narrow, open_session
from visionllm_edge.plugins.cached_attention.spec import CACHED_ATTENTION
from visionllm_edge.plugins.cpu.library import instruction_set

SCALE = 0.3
# A rotated key may fall on the other side of a tie between two halves, one unit in the last place.
LIMITS = {np.float32: 2e-5, np.float16: 5e-3}


@pytest.fixture(params=["avx512vnni", "avx512", "avx2", "portable"])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, cpu_library: Path) -> str:
    """Ask for one instruction set; skipped where the processor does not have it."""
    name: str = request.param
    monkeypatch.setenv("VISIONLLM_EDGE_CPU_ISA", name)
    if instruction_set(cpu_library) != name:
        pytest.skip(f"this processor has no {name}")
    return name


def check(
    library: Path,
    start: int,
    length: int,
    *,
    heads: int = 4,
    kv_heads: int = 2,
    in_place: bool = True,
    threads: int = 2,
    **sizes: Any,
) -> None:
    """Kernel against reference; cache rows that nobody may read or write are not a number."""
    inputs = make_inputs(start, length, heads=heads, kv_heads=kv_heads, **sizes)
    expected = reference(inputs, num_heads=heads, kv_num_heads=kv_heads, scale=SCALE)
    cache = inputs["past_key"].dtype.type
    end = start + length
    for past in (inputs["past_key"], inputs["past_value"]):
        past[:, :, start:] = np.nan
    model = one_node_model(
        heads=heads, kv_heads=kv_heads, scale=SCALE, combination=3 if cache == np.float16 else 0
    )
    session = open_session(model, library, threads=threads)
    attention, keys, values = run_session(session, inputs, in_place=in_place)
    case = f"{start}+{length}"
    np.testing.assert_allclose(attention, expected[0], atol=LIMITS[cache], err_msg=case)
    unit = 1e-3 if cache == np.float16 else 1e-6
    np.testing.assert_allclose(
        keys[:, :, start:end], expected[1][:, :, start:end], rtol=unit, atol=1e-6
    )
    np.testing.assert_array_equal(values[:, :, start:end], expected[2][:, :, start:end])
    for got, past in ((keys, inputs["past_key"]), (values, inputs["past_value"])):
        np.testing.assert_array_equal(got[:, :, :start], past[:, :, :start])
        assert np.isnan(got[:, :, end:]).all()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("cache", [np.float32, np.float16])
class TestEveryInstructionSet:
    @pytest.mark.parametrize("in_place", [False, True], ids=["copied cache", "shared cache"])
    @pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (4, 1), (17, 1)])
    def test_steps(
        self, cpu_library: Path, heads: int, kv_heads: int, in_place: bool, cache: Any
    ) -> None:
        for start, length in STEPS:
            check(
                cpu_library, start, length,
                heads=heads, kv_heads=kv_heads, in_place=in_place, cache=cache, batch=2,
            )  # fmt: skip

    @pytest.mark.parametrize("depth", [2, 6, 12, 16, 20, 48, 64, 80, 96, 128, 130, 256, 264])
    def test_head_sizes(self, cpu_library: Path, depth: int, cache: Any) -> None:
        for start, length in ((0, 3), (20, 1), (37, 40)):
            check(cpu_library, start, length, depth=depth, cache=cache)

    @pytest.mark.parametrize("length", [1, 2, 5, 65])
    @pytest.mark.parametrize("start", [127, 128, 500, 900])
    def test_long_contexts_in_ranges(
        self, cpu_library: Path, start: int, length: int, cache: Any
    ) -> None:
        # More than one tile of 128 keys; few rows, so that the keys are cut into ranges as well.
        check(cpu_library, start, length, depth=32, capacity=start + length, cache=cache)

    @pytest.mark.parametrize(("heads", "kv_heads"), [(8, 8), (16, 2)])
    def test_prompts(self, cpu_library: Path, heads: int, kv_heads: int, cache: Any) -> None:
        for start, length in ((0, 300), (100, 250)):
            check(
                cpu_library, start, length,
                heads=heads, kv_heads=kv_heads, depth=32, capacity=400, cache=cache,
            )  # fmt: skip


def test_a_full_prompt_of_640_rows(cpu_library: Path) -> None:
    check(cpu_library, 0, 640, heads=4, kv_heads=1, depth=64, capacity=640)


@pytest.mark.usefixtures("isa")
def test_exponentials_are_right_to_the_last_bits(cpu_library: Path) -> None:
    """Two keys with scores 0 and x, two values 0 and 1: the output is 2^x / (1 + 2^x)."""
    x = np.concatenate([np.linspace(0, -126, 4001), [-127, -200, -1e30]]).astype(np.float32)
    heads = len(x)
    query = np.zeros((1, 1, heads, 2), dtype=np.float32)
    query[..., 0] = x
    inputs: Inputs = {
        "query": query.reshape(1, 1, -1),
        "key": np.array([[[1, 0]]], dtype=np.float32),
        "value": np.ones((1, 1, 2), dtype=np.float32),
        "past_key": np.zeros((1, 1, 2, 2), dtype=np.float32),
        "past_value": np.zeros((1, 1, 2, 2), dtype=np.float32),
        "past_length": np.array([1]),
        "cos": np.ones((2, 1), dtype=np.float32),
        "sin": np.zeros((2, 1), dtype=np.float32),
    }
    # ln 2 times log2 e is 1 in float32: the powers are of two.
    model = one_node_model(heads=heads, kv_heads=1, scale=float(np.log(2)))
    attention = open_session(model, cpu_library).run(None, inputs)[0].reshape(heads, 2)[:, 0]
    with np.errstate(under="ignore"):
        power = np.exp2(x.astype(np.float64))
    expected = power / (1 + power)
    normal = x >= -126
    # The power, and a rounding each of the sum, its inverse and the product; 1.8e-7 was seen.
    np.testing.assert_allclose(attention[normal], expected[normal], rtol=2.5e-7)
    assert attention[0] == 0.5
    assert not attention[~normal].any()


@pytest.mark.parametrize(
    ("combination", "kind", "limit"), [(1, "float16", 5e-3), (2, "bfloat16", 4e-2)]
)
@pytest.mark.parametrize("depth", [6, 64])
def test_half_precision_throughout(
    cpu_library: Path, combination: int, kind: str, limit: float, depth: int
) -> None:
    """The node between casts: numpy has no bfloat16."""
    model = one_node_model(heads=4, kv_heads=2, scale=SCALE, combination=combination)
    graph = model.graph
    (node,) = graph.node
    nodes = []
    for index, name in enumerate(node.input):
        if name == "past_length":
            continue
        nodes.append(helper.make_node("Cast", [name], [f"{name}_half"], to=ONNX_TYPES[kind]))
        node.input[index] = f"{name}_half"
        graph.input[index].type.tensor_type.elem_type = TensorProto.FLOAT
    nodes.append(node)
    for index, name in enumerate(list(node.output)):
        node.output[index] = f"{name}_half"
        nodes.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
        graph.output[index].type.tensor_type.elem_type = TensorProto.FLOAT
    kept = [type(node).FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    session = open_session(model, cpu_library)
    for start, length in ((0, 7), (13, 1), (13, 65)):
        inputs = {
            name: array if name == "past_length" else narrow(array, kind)
            for name, array in make_inputs(start, length, heads=4, kv_heads=2, depth=depth).items()
        }
        expected = reference(inputs, num_heads=4, kv_num_heads=2, scale=SCALE)
        for got, want in zip(session.run(None, inputs), expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=limit, atol=limit)


def test_threads_do_not_change_a_bit(cpu_library: Path) -> None:
    model = one_node_model(heads=8, kv_heads=2, scale=SCALE)
    for start, length in ((700, 1), (600, 5), (0, 200)):
        inputs = make_inputs(start, length, heads=8, kv_heads=2, depth=64, capacity=800)
        one, two = (
            open_session(model, cpu_library, threads=threads).run(None, inputs)[0]
            for threads in (1, 2)
        )
        np.testing.assert_array_equal(one, two)


def test_append_in_pieces_equals_one_prefill(cpu_library: Path) -> None:
    whole = make_inputs(0, 300, heads=4, kv_heads=2, depth=16, capacity=300)
    session = open_session(one_node_model(heads=4, kv_heads=2, scale=SCALE), cpu_library)
    expected = session.run(None, whole)
    pieces, caches, start = [], [whole["past_key"], whole["past_value"]], 0
    for length in (140, 1, 5, 65, 1, 88):
        step = {k: whole[k][:, start : start + length] for k in ("query", "key", "value")}
        past = {"past_key": caches[0], "past_value": caches[1], "past_length": np.array([start])}
        attention, *caches = session.run(None, {**whole, **step, **past})
        pieces.append(attention)
        start += length
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), expected[0], atol=2e-6)
    for got, want in zip(caches, expected[1:], strict=True):
        np.testing.assert_array_equal(got, want)


def test_no_new_rows_copies_the_cache(cpu_library: Path) -> None:
    inputs = make_inputs(13, 0, heads=4, kv_heads=2)
    session = open_session(one_node_model(heads=4, kv_heads=2, scale=SCALE), cpu_library)
    attention, keys, values = session.run(None, inputs)
    assert attention.shape == (1, 0, 32)
    np.testing.assert_array_equal(keys, inputs["past_key"])
    np.testing.assert_array_equal(values, inputs["past_value"])


@pytest.mark.parametrize("contrib", [False, True], ids=["standard body", "GroupQueryAttention"])
def test_the_kernel_replaces_the_function(cpu_library: Path, tmp_path: Path, contrib: bool) -> None:
    # Seen in the profile: the same file, one node with the kernel, the body without.
    model = one_node_model(heads=4, kv_heads=2, scale=SCALE, batch=1, depth=16, contrib=contrib)
    inputs = make_inputs(13, 5, heads=4, kv_heads=2, depth=16)
    ran, results = {}, {}
    for name, library in (("kernel", cpu_library), ("function", None)):
        options = ort.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(tmp_path / name)
        if library is not None:
            options.register_custom_ops_library(str(library))
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        results[name] = session.run(None, inputs)[0]
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        ran[name] = {event["args"].get("op_name") for event in events if "args" in event}
    body = "GroupQueryAttention" if contrib else "Softmax"
    assert CACHED_ATTENTION.name in ran["kernel"]
    assert body not in ran["kernel"]
    assert CACHED_ATTENTION.name not in ran["function"]
    assert body in ran["function"]
    np.testing.assert_allclose(results["kernel"], results["function"], atol=1e-5)


def _replace(name: str, array: NDArray[Any]) -> Inputs:
    return make_inputs(13, 5, heads=4, kv_heads=2) | {name: array}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (make_inputs(78, 3, heads=4, kv_heads=2), "past_length 78 and 3 new rows .* 80 rows"),
        (_replace("past_length", np.array([-1])), "past_length -1 and 5 new rows"),
        (_replace("past_length", np.array([2**63 - 1])), "past_length 9223372036854775807 and"),
        (_replace("past_length", np.array([1, 2])), "'past_length': axis 0 expected 1, got 2"),
        (_replace("cos", np.zeros((17, 4), "f")), "'cos' and 'sin' expected at least 18 rows"),
        (_replace("sin", np.zeros((80, 3), "f")), "'sin': axis 1 expected 4, got 3"),
        (_replace("key", np.zeros((1, 4, 16), "f")), "'key': axis 1 expected 5, got 4"),
        (_replace("value", np.zeros((1, 5, 8), "f")), "'value': axis 2 expected 16, got 8"),
        (_replace("past_value", np.zeros((1, 2, 79, 8), "f")), "'past_value': axis 2 expected 80"),
    ],
)  # fmt: skip
def test_refusals(cpu_library: Path, inputs: Inputs, message: str) -> None:
    session = open_session(one_node_model(heads=4, kv_heads=2, scale=SCALE), cpu_library)
    with pytest.raises(Exception, match=f"CachedAttention: .*{message}"):
        session.run(None, inputs)


def test_refuses_heads_that_do_not_group(cpu_library: Path) -> None:
    session = open_session(one_node_model(heads=4, kv_heads=3, scale=SCALE), cpu_library)
    with pytest.raises(
        Exception, match="num_heads expected a multiple of kv_num_heads, got 4 and 3"
    ):
        session.run(None, make_inputs(0, 1, heads=4, kv_heads=3))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (
            "const int64_t angle = (call.start + new_row) * half;",
            "const int64_t angle = (call.start + new_row + 1) * half;",
        ),
        ("task.first_row + row / group + 1 - key;", "task.first_row + row / group + 2 - key;"),
        (
            "(task.batch * call.kv_heads + task.kv_head) * call.capacity * call.depth",
            "((task.batch + 1) * call.kv_heads - 1 - task.kv_head) * call.capacity * call.depth",
        ),
        ("total += next.total[row] * factor;", "total += next.total[row];"),
    ],
    ids=["rotation one off", "mask one off", "wrong head of the cache", "ranges not weighed"],
)  # fmt: skip
def test_the_comparison_sees_a_wrong_kernel(
    plant_fault: PlantFault, right: str, wrong: str
) -> None:
    library = plant_fault("cached_attention/cpu_kernel.h", right, wrong)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        for start, length in ((13, 5), (200, 1)):
            check(library, start, length, depth=16, capacity=280)
