"""The ONNX Runtime backend on small graphs made here."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from visionllm_edge.runtime.backends import StageOptions, load_backend
from visionllm_edge.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend, OnnxRuntimeStage
from visionllm_edge.runtime.errors import BackendError
from visionllm_edge.runtime.ports import Port, StagePorts

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
ONNX_TYPES = {"float32": FLOAT, "int64": INT64}


def save(path: Path, nodes: list[onnx.NodeProto], ports: StagePorts, **axes: int) -> Path:
    """Write a graph with these ends; ``axes`` turns symbols of the ports into numbers."""

    def ends(side: tuple[Port, ...]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(
                p.name, ONNX_TYPES[p.dtype], [axes.get(str(a), a) for a in p.shape]
            )
            for p in side
        ]

    graph = helper.make_graph(nodes, "test", ends(ports.inputs), ends(ports.outputs))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def load(path: Path, ports: StagePorts, threads: int = 1) -> OnnxRuntimeStage:
    return OnnxRuntimeBackend().load_stage(path, ports, StageOptions(threads=threads))


ADD = StagePorts(
    "adder",
    (Port("a", "float32", ("n", 4)), Port("b", "float32", ("n", 4))),
    (Port("sum", "float32", ("n", 4)),),
)


@pytest.fixture
def adder(tmp_path: Path) -> OnnxRuntimeStage:
    node = helper.make_node("Add", ["a", "b"], ["sum"])
    return load(save(tmp_path / "adder.onnx", [node], ADD), ADD)


def rows(n: int, value: float) -> np.ndarray:
    return np.full((n, 4), value, dtype=np.float32)


def test_numbers_and_every_size(adder: OnnxRuntimeStage) -> None:
    for n in (3, 1, 7, 2):
        out = adder.run({"a": rows(n, 2.0), "b": rows(n, n)})
        assert list(out) == ["sum"]
        assert np.array_equal(out["sum"], rows(n, 2.0 + n))


def test_output_buffer_is_reused(adder: OnnxRuntimeStage) -> None:
    first = adder.run({"a": rows(3, 1.0), "b": rows(3, 1.0)})["sum"]
    again = adder.run({"a": rows(3, 5.0), "b": rows(3, 1.0)})["sum"]
    smaller = adder.run({"a": rows(2, 7.0), "b": rows(2, 1.0)})["sum"]
    assert first.ctypes.data == again.ctypes.data == smaller.ctypes.data
    # This is the price, and what the docstring warns of.
    assert first[0, 0] == 8.0


def test_kept_outputs_are_the_callers(adder: OnnxRuntimeStage) -> None:
    kept = adder.run_kept({"a": rows(3, 1.0), "b": rows(3, 1.0)})["sum"]
    adder.run({"a": rows(3, 5.0), "b": rows(3, 1.0)})
    adder.run_kept({"a": rows(3, 7.0), "b": rows(3, 1.0)})
    assert np.array_equal(np.asarray(kept), rows(3, 2.0))


def test_inputs_are_never_written(adder: OnnxRuntimeStage) -> None:
    a = rows(3, 1.0)
    for _ in range(3):
        # Fed back its own output, a stage must not write into what it is reading.
        out = adder.run({"a": a, "b": rows(3, 1.0)})["sum"]
        before = out.copy()
        assert adder.run({"a": out, "b": rows(3, 1.0)})["sum"][0, 0] == before[0, 0] + 1.0
        assert np.array_equal(out, before)
    assert np.array_equal(a, rows(3, 1.0))


def test_inputs_of_any_layout(adder: OnnxRuntimeStage) -> None:
    a = np.arange(24, dtype=np.float32).reshape(4, 6).T
    out = adder.run({"a": a, "b": a[::-1]})["sum"]
    assert np.array_equal(out, a + a[::-1])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"a": rows(2, 0)}, r"missing \['b'\]"),
        ({"a": rows(2, 0), "b": rows(3, 0)}, r"'b' expected \[n, 4\] float32 with n = 2"),
        ({"a": rows(2, 0), "b": rows(2, 0).astype(np.float64)}, "float64"),
        ({"a": rows(2, 0), "b": rows(2, 0)[:, :3]}, r"got \[2, 3\] float32"),
    ],
)
def test_wrong_inputs(adder: OnnxRuntimeStage, inputs: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(BackendError, match="stage 'adder'.*" + message):
        adder.run(inputs)


BUCKET = StagePorts(
    "bucketed",
    (Port("pixels", "float32", (1, "H", "W")),),
    (Port("map", "float32", (1, "H", "W")),),
)


def test_what_the_graph_fixes_is_checked_before_it_runs(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["pixels"], ["map"])
    stage = load(save(tmp_path / "m.onnx", [node], BUCKET, H=4, W=6), BUCKET)
    assert stage.run({"pixels": np.ones((1, 4, 6), np.float32)})["map"].shape == (1, 4, 6)
    with pytest.raises(BackendError, match=r"with W = 6, got \[1, 4, 8\]"):
        stage.run({"pixels": np.ones((1, 4, 8), np.float32)})


NONZERO = StagePorts(
    "finder",
    (Port("x", "float32", ("n",)),),
    (Port("twice", "float32", ("n",)), Port("where", "int64", (1, "found"))),
)


def test_a_size_that_depends_on_values(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["where"]),
        helper.make_node("Add", ["x", "x"], ["twice"]),
    ]
    stage = load(save(tmp_path / "m.onnx", nodes, NONZERO), NONZERO)
    kept = []
    for x in ([0, 1, 0, 2], [3], [0, 0], [1, 1, 1, 1, 1]):
        values = np.array(x, dtype=np.float32)
        out = stage.run({"x": values})
        assert out["where"].tolist() == [np.flatnonzero(values).tolist()]
        assert np.array_equal(out["twice"], values * 2)
        kept.append((out["where"], out["where"].copy()))
    gc.collect()
    assert all(np.array_equal(live, copy) for live, copy in kept)


def test_a_failure_inside_names_the_stage(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ports = StagePorts(
        "reshaper", (Port("x", "float32", ("n",)),), (Port("y", "float32", (3, "m")),)
    )
    nodes = [
        helper.make_node("Constant", [], ["shape"], value_ints=[3, -1]),
        helper.make_node("Reshape", ["x", "shape"], ["y"]),
    ]
    stage = load(save(tmp_path / "m.onnx", nodes, ports), ports)
    assert stage.run({"x": np.ones(6, np.float32)})["y"].shape == (3, 2)
    with pytest.raises(BackendError, match=r"stage 'reshaper': ONNX Runtime failed: .*eshape"):
        stage.run({"x": np.ones(7, np.float32)})
    assert capfd.readouterr().err == ""
    # The stage still works.
    assert stage.run({"x": np.ones(9, np.float32)})["y"].shape == (3, 3)


@pytest.mark.parametrize("content", [None, b"", b"no graph"])
def test_unloadable_graphs(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BackendError, match=r"stage 'adder': ONNX Runtime .* cannot load 'x\.onnx'"):
        load(path, ADD)


def test_an_operator_that_does_not_exist(tmp_path: Path) -> None:
    node = helper.make_node("NoSuchOp", ["a", "b"], ["sum"], domain="nobody")
    ends = [helper.make_tensor_value_info(n, FLOAT, ["n", 4]) for n in ("a", "b", "sum")]
    graph = helper.make_graph([node], "g", ends[:2], ends[2:])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("nobody", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "x.onnx")
    with pytest.raises(BackendError, match="NoSuchOp"):
        load(tmp_path / "x.onnx", ADD)


@pytest.mark.parametrize(
    "ports",
    [
        StagePorts("s", ADD.inputs[:1], ADD.outputs),
        StagePorts("s", ADD.inputs, (Port("total", "float32", ("n", 4)),)),
        StagePorts("s", ADD.inputs, (Port("sum", "int64", ("n", 4)),)),
        StagePorts("s", ADD.inputs, (Port("sum", "float32", ("n", 5)),)),
        StagePorts("s", ADD.inputs, (Port("sum", "float32", ("n",)),)),
        # One symbol for two different lengths.
        StagePorts("s", (Port("a", "float32", ("n", "m")), Port("b", "float32", (4, "m"))), ()),
    ],
    ids=["input missing", "output name", "type", "length", "rank", "ends"],
)
def test_a_manifest_that_does_not_fit_the_graph(tmp_path: Path, ports: StagePorts) -> None:
    node = helper.make_node("Add", ["a", "b"], ["sum"])
    path = save(tmp_path / "adder.onnx", [node], ADD)
    with pytest.raises(BackendError, match=r"the manifest (names|says)"):
        load(path, ports)


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    node = helper.make_node("Add", ["a", "b"], ["sum"])
    path = save(tmp_path / "adder.onnx", [node], ADD)
    options = StageOptions(custom_op_libraries=(tmp_path / "libabsent.so",))
    with pytest.raises(BackendError, match=r"libabsent\.so"):
        OnnxRuntimeBackend().load_stage(path, ADD, options)


def test_backends_by_name() -> None:
    assert load_backend("onnxruntime").name == "onnxruntime"
    with pytest.raises(BackendError, match="'tensorrt9' is unknown; expected one of onnxruntime"):
        load_backend("tensorrt9")


CAPACITY, KV, DH = 64, 1, 8
DECODER = StagePorts(
    "llm_decoder",
    (
        Port("rows", "float32", (1, KV, "s", DH)),
        Port("past_length", "int64", (1,)),
        Port("past_key_values.0.key", "float32", (1, KV, "C", DH)),
        Port("past_key_values.0.value", "float32", (1, KV, "C", DH)),
    ),
    (
        Port("total", "float32", (1, KV, DH)),
        Port("present.0.key", "float32", (1, KV, "C", DH)),
        Port("present.0.value", "float32", (1, KV, "C", DH)),
        Port("nonzero", "int64", (4, "found")),
    ),
)


@pytest.fixture
def decoder(tmp_path: Path) -> OnnxRuntimeStage:
    """A cache without a model: writes its rows (twice them as values) at past_length, sums keys."""
    make = helper.make_node
    nodes = [
        make("Constant", [], ["zero"], value_int=0),
        make("Constant", [], ["one"], value_int=1),
        make("Constant", [], ["row_axis"], value_ints=[2]),
        make("Shape", ["rows"], ["s"], start=2, end=3),
        make("Squeeze", ["s"], ["count"]),
        make("Range", ["zero", "count", "one"], ["steps"]),
        make("Add", ["steps", "past_length"], ["positions"]),
        # ScatterND wants one triple (0, 0, position) per row, as [1,1,s,3].
        make("Constant", [], ["column"], value_ints=[0, 1, 3]),
        make("Unsqueeze", ["positions", "column"], ["at"]),
        make("Constant", [], ["pads"], value_ints=[0, 0, 0, 2, 0, 0, 0, 0]),
        make("Pad", ["at", "pads"], ["triples"]),
        make("Add", ["rows", "rows"], ["double"]),
        make("ScatterND", ["past_key_values.0.key", "triples", "rows"], ["present.0.key"]),
        make("ScatterND", ["past_key_values.0.value", "triples", "double"], ["present.0.value"]),
        make("ReduceSum", ["present.0.key", "row_axis"], ["total"], keepdims=0),
        make("NonZero", ["present.0.key"], ["nonzero"]),
    ]
    return load(save(tmp_path / "decoder.onnx", nodes, DECODER), DECODER)


def new_rows(s: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(1, 2, (1, KV, s, DH)).astype(np.float32)


def step(past: int, rows: np.ndarray) -> dict[str, np.ndarray]:
    return {"rows": rows, "past_length": np.array([past], dtype=np.int64)}


def test_cache_is_updated_in_place(decoder: OnnxRuntimeStage) -> None:
    cache = decoder.new_cache(CAPACITY)
    assert cache.capacity == CAPACITY and cache.nbytes == 2 * KV * CAPACITY * DH * 4
    key, value = cache.array("past_key_values.0.key"), cache.array("past_key_values.0.value")
    address = key.ctypes.data
    expected = np.zeros((1, KV, CAPACITY, DH), dtype=np.float32)
    past = 0
    for turn, s in enumerate((20, 1, 1, 5, 1)):
        rows = new_rows(s, turn)
        # A mark on a row that no run writes: whoever copies the buffer loses later marks.
        key[0, 0, -1, turn] = expected[0, 0, -1, turn] = 100.0 + turn
        out = decoder.run_with_cache(step(past, rows), cache)
        expected[:, :, past : past + s] = rows
        past += s
        # Reading the very memory that was bound shows that present was written into past.
        assert np.array_equal(key, expected)
        assert np.allclose(out["total"], expected.sum(axis=2), rtol=1e-5)
        assert out["nonzero"].shape == (4, np.count_nonzero(expected))
        assert sorted(out) == ["nonzero", "total"]
    assert np.array_equal(value[:, :, :past], 2 * expected[:, :, :past])
    assert cache.array("past_key_values.0.key").ctypes.data == address


def test_present_is_the_same_memory(decoder: OnnxRuntimeStage) -> None:
    cache = decoder.new_cache(CAPACITY)
    decoder.run_with_cache(step(0, new_rows(3)), cache)
    bound = decoder._bindings[cache].binding.get_outputs()
    addresses = {array.ctypes.data for array in cache.arrays.values()}
    assert {value.data_ptr() for value in bound[:2]} == addresses
    assert all(address % 64 == 0 for address in addresses)


def test_run_without_a_cache_copies(decoder: OnnxRuntimeStage) -> None:
    past = {
        f"past_key_values.0.{p}": np.zeros((1, KV, 9, DH), np.float32) for p in ("key", "value")
    }
    out = decoder.run({**step(2, new_rows(3)), **past})
    assert np.array_equal(out["present.0.key"][:, :, 2:5], new_rows(3))
    assert not past["past_key_values.0.key"].any()


def test_two_caches_do_not_meet(decoder: OnnxRuntimeStage) -> None:
    first, second = decoder.new_cache(CAPACITY), decoder.new_cache(CAPACITY // 2)
    decoder.run_with_cache(step(0, new_rows(3, 1)), first)
    decoder.run_with_cache(step(0, new_rows(4, 2)), second)
    decoder.run_with_cache(step(3, new_rows(1, 3)), first)
    name = "past_key_values.0.key"
    assert np.array_equal(first.array(name)[:, :, :3], new_rows(3, 1))
    assert np.array_equal(second.array(name)[:, :, :4], new_rows(4, 2))
    assert np.array_equal(first.array(name)[:, :, 3:4], new_rows(1, 3))


@pytest.fixture
def plain_decoder(tmp_path: Path) -> OnnxRuntimeStage:
    """Adds its rows to every row of the cache: every shape follows from the inputs."""
    ports = StagePorts("llm_decoder", DECODER.inputs, DECODER.outputs[:3])
    make = helper.make_node
    nodes = [
        make("Constant", [], ["row_axis"], value_ints=[2]),
        make("ReduceSum", ["rows", "row_axis"], ["sum"], keepdims=1),
        make("Cast", ["past_length"], ["past"], to=FLOAT),
        make("Add", ["sum", "past"], ["shifted"]),
        make("Add", ["past_key_values.0.key", "shifted"], ["present.0.key"]),
        make("Add", ["past_key_values.0.value", "shifted"], ["present.0.value"]),
        make("Squeeze", ["shifted", "row_axis"], ["total"]),
    ]
    return load(save(tmp_path / "plain.onnx", nodes, ports), ports)


def test_steps_of_one_shape_use_one_binding(plain_decoder: OnnxRuntimeStage) -> None:
    cache, other = plain_decoder.new_cache(CAPACITY), plain_decoder.new_cache(CAPACITY)
    key = cache.array("past_key_values.0.key")
    expected = np.zeros(DH, np.float32)
    for turn, s in enumerate((20, 1, 1, 1, 5, 5, 1, 1)):
        rows = new_rows(s, turn)
        given = step(turn, rows)
        out = plain_decoder.run_with_cache(given, cache)
        rows.fill(np.nan)  # a caller may do what it likes with its arrays
        added = new_rows(s, turn).sum(axis=(0, 1, 2)) + turn
        expected += added
        np.testing.assert_allclose(out["total"][0, 0], added, rtol=1e-5)
        np.testing.assert_allclose(key[0, 0, CAPACITY - 1], expected, rtol=1e-5)
        # A run on another cache in between changes neither.
        between = plain_decoder.run_with_cache(step(0, new_rows(s, 99)), other)
        np.testing.assert_allclose(
            between["total"][0, 0], new_rows(s, 99).sum(axis=(0, 1, 2)), rtol=1e-5
        )
    before = plain_decoder._bindings[cache].step
    plain_decoder.run_with_cache(step(0, new_rows(1)), cache)
    assert before is not None and plain_decoder._bindings[cache].step is before


def test_what_a_step_may_not_take_is_refused_after_it_was_bound(
    plain_decoder: OnnxRuntimeStage,
) -> None:
    cache = plain_decoder.new_cache(CAPACITY)
    good = step(0, new_rows(1))
    plain_decoder.run_with_cache(good, cache)
    for bad in (
        {**good, "rows": good["rows"].astype(np.float64)},
        {**good, "rows": good["rows"][..., :4]},
        {"rows": good["rows"]},
        {**good, "more": good["rows"]},
    ):
        with pytest.raises(BackendError):
            plain_decoder.run_with_cache(bad, cache)
    # Its own output is an input like any other.
    out = plain_decoder.run_with_cache(good, cache)["total"]
    again = plain_decoder.run_with_cache({**good, "rows": out[:, :, None]}, cache)["total"]
    np.testing.assert_array_equal(again, good["rows"][:, :, 0])


def test_a_cache_is_freed_with_its_last_reference(decoder: OnnxRuntimeStage) -> None:
    cache = decoder.new_cache(CAPACITY)
    decoder.run_with_cache(step(0, new_rows(3)), cache)
    gone = weakref.ref(cache)
    del cache
    gc.collect()
    assert gone() is None


def test_wrong_use_of_a_cache(decoder: OnnxRuntimeStage, adder: OnnxRuntimeStage) -> None:
    cache = decoder.new_cache(CAPACITY)
    with pytest.raises(BackendError, match=r"\['past_key_values\.0\.key'\] are part of the cache"):
        decoder.run_with_cache(
            {**step(0, new_rows(1)), "past_key_values.0.key": cache.array("past_key_values.0.key")},
            cache,
        )
    with pytest.raises(BackendError, match="not made by new_cache"):
        adder.run_with_cache({"a": rows(1, 0), "b": rows(1, 0)}, cache)
    with pytest.raises(BackendError, match="'adder' has no past_key_values"):
        adder.new_cache(8)
    with pytest.raises(BackendError, match="got 0"):
        decoder.new_cache(0)


def test_a_capacity_that_the_graph_fixes(tmp_path: Path) -> None:
    ports = StagePorts(
        "fixed",
        (Port("past_key_values.0.key", "float32", (1, KV, "C", DH)),),
        (Port("present.0.key", "float32", (1, KV, "C", DH)),),
    )
    node = helper.make_node("Relu", ["past_key_values.0.key"], ["present.0.key"])
    stage = load(save(tmp_path / "m.onnx", [node], ports, C=16), ports)
    assert stage.new_cache(16).array("past_key_values.0.key").shape == (1, KV, 16, DH)
    with pytest.raises(BackendError, match="expected a capacity of 16 rows, got 8"):
        stage.new_cache(8)


def test_a_past_without_its_present(tmp_path: Path) -> None:
    ports = StagePorts(
        "half",
        (Port("past_key_values.0.key", "float32", (1, KV, "C", DH)),),
        (Port("other", "float32", (1, KV, "C", DH)),),
    )
    node = helper.make_node("Relu", ["past_key_values.0.key"], ["other"])
    stage = load(save(tmp_path / "m.onnx", [node], ports), ports)
    with pytest.raises(BackendError, match=r"expected an output 'present\.0\.key' to pair with"):
        stage.run_with_cache({}, stage.new_cache(4))
