"""Weights in memory of ours: which ones, read how, and that ONNX Runtime does not copy them."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from visionllm_edge.runtime.backends import StageOptions, onnxruntime_options, resident_weights
from visionllm_edge.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend, OnnxRuntimeStage
from visionllm_edge.runtime.backends.resident_weights import load_resident, resident_tensors
from visionllm_edge.runtime.errors import BackendError
from visionllm_edge.runtime.ports import Port, StagePorts

ROWS, WIDTH = 3, 1000
PORTS = StagePorts(
    "adder",
    (Port("x", "float32", ("n", WIDTH)),),
    (Port("y", "float32", ("n", WIDTH)),),
)


def save(path: Path, node: onnx.NodeProto, tensors: dict[str, np.ndarray]) -> Path:
    """A graph of one node whose initializers lie in a file, the last one first."""
    graph = helper.make_graph(
        [node],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", WIDTH])],
    )
    content = b"\1" * 16
    for name, array in reversed(tensors.items()):
        tensor = graph.initializer.add()
        tensor.name, tensor.data_location = name, TensorProto.EXTERNAL
        tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor.dims.extend(array.shape)
        for key, value in (
            ("location", "stage.weights"),
            ("offset", str(len(content))),
            ("length", str(array.nbytes)),
        ):
            tensor.external_data.add(key=key, value=value)
        content += array.tobytes()
    (path.parent / "stage.weights").write_bytes(content)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("visionllm", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "weight": rng.integers(0, 256, (4, 2, 16)).astype(np.uint8),
        "scales": rng.random((4, 2)).astype(np.float16),
        "offset": rng.random((4, 2)).astype(np.float16),
    }


def quantized(path: Path, tensors: dict[str, np.ndarray], domain: str = "visionllm") -> Path:
    names = ["x", "weight", "scales", "offset"]
    return save(path, helper.make_node("QuantizedLinear", names, ["y"], domain=domain), tensors)


def test_the_operators_weights_are_found_in_the_order_of_the_file(
    tmp_path: Path, weights: dict[str, np.ndarray]
) -> None:
    found = resident_tensors(quantized(tmp_path / "m.onnx", weights))
    assert [(t.name, t.dtype, t.shape) for t in found] == [
        ("scales", "float16", (4, 2)),
        ("weight", "uint8", (4, 2, 16)),
    ]
    assert resident_tensors(quantized(tmp_path / "other.onnx", weights, domain="other")) == []
    (tmp_path / "bad.onnx").write_bytes(b"no graph at all")
    assert resident_tensors(tmp_path / "bad.onnx") == []
    assert resident_tensors(tmp_path / "none.onnx") == []


def test_shapes_in_either_encoding(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    """Protobuf may write the dimensions as one packed field or one by one."""
    path = quantized(tmp_path / "m.onnx", weights)
    packed, single = b"\x0a\x03\x04\x02\x10", b"\x08\x04\x08\x02\x08\x10"
    content = path.read_bytes()
    old, new = (packed, single) if packed in content else (single, packed)
    assert content.count(old) == 1
    tensor = onnx.load(path, load_external_data=False).graph.initializer[-1]
    raw = tensor.SerializeToString().replace(old, new)
    assert resident_weights._stored(memoryview(raw)) == next(
        t for t in resident_tensors(path) if t.name == "weight"
    )


def test_arrays_are_those_of_the_file(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    found = resident_tensors(quantized(tmp_path / "m.onnx", weights))
    arrays = load_resident(tmp_path, found)
    assert set(arrays) == {"weight", "scales"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, weights[name])
        assert array.dtype == weights[name].dtype and array.ctypes.data % 64 == 0


@pytest.mark.parametrize("keep", [0, 40])
def test_a_file_that_ends_early_is_named(
    tmp_path: Path, weights: dict[str, np.ndarray], keep: int
) -> None:
    found = resident_tensors(quantized(tmp_path / "m.onnx", weights))
    file = tmp_path / "stage.weights"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(BackendError, match=r"'stage\.weights', the file ends \d+ bytes earlier"):
        load_resident(tmp_path, found)
    file.unlink()
    with pytest.raises(BackendError, match=r"'stage\.weights' cannot be read"):
        load_resident(tmp_path, found)


def load(path: Path, monkeypatch: pytest.MonkeyPatch, *, kernels: bool) -> OnnxRuntimeStage:
    """An adder, as if its weight were one that a kernel reads as it lies in the file."""
    monkeypatch.setattr(resident_weights, "_OPERATORS", {("", "Add"): (1,)})
    monkeypatch.setattr(onnxruntime_options, "register_kernels", lambda options: kernels)
    return OnnxRuntimeBackend().load_stage(path, PORTS, StageOptions(threads=1))


@pytest.fixture
def adder(tmp_path: Path) -> Path:
    node = helper.make_node("Add", ["x", "bias"], ["y"])
    return save(tmp_path / "m.onnx", node, {"bias": np.ones((1, WIDTH), np.float32)})


def test_onnx_runtime_reads_the_array_where_it_is(
    adder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = load(adder, monkeypatch, kernels=True)
    x = np.zeros((ROWS, WIDTH), np.float32)
    np.testing.assert_array_equal(stage.run({"x": x})["y"], x + 1)

    stage._weights["bias"].numpy()[:] = 5.0
    gc.collect()

    np.testing.assert_array_equal(stage.run({"x": x})["y"], x + 5)


def test_without_kernels_the_file_stays_mapped(
    adder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = load(adder, monkeypatch, kernels=False)
    assert stage._weights == {}
    x = np.zeros((ROWS, WIDTH), np.float32)
    np.testing.assert_array_equal(stage.run({"x": x})["y"], x + 1)


def test_the_weights_live_as_long_as_the_stage(
    adder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [load(adder, monkeypatch, kernels=True) for _ in range(3)]
    gc.collect()
    junk = [np.full(2**20, 7.0, np.float32) for _ in range(8)]
    x = np.zeros((1, WIDTH), np.float32)
    for stage in stages:
        np.testing.assert_array_equal(stage.run({"x": x})["y"], x + 1)
    del junk
