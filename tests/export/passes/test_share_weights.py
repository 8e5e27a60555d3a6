from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnx import helper

from tests.export.passes.graphs import make_model
from visionllm_edge.export.passes.share_weights import MIN_BYTES, WeightFile

BIG = np.random.default_rng(0).standard_normal((40, 50), dtype=np.float32)
OTHER = np.random.default_rng(1).standard_normal((40, 50), dtype=np.float32)
SMALL = np.ones((40, 1), np.float32)


def _model(weight: np.ndarray, name: str) -> ir.Model:
    return make_model(
        [
            helper.make_node("MatMul", ["x", name], ["a"]),
            helper.make_node("MatMul", ["x", "small"], ["b"]),
            helper.make_node("Add", ["a", "b"], ["y"]),
        ],
        inputs={"x": ["n", 40]},
        outputs={"y": ["n", 50]},
        constants={name: weight, "small": SMALL},
    )


def test_equal_content_is_written_once_whatever_its_name(tmp_path: Path) -> None:
    assert BIG.nbytes > MIN_BYTES > SMALL.nbytes
    models = [_model(BIG, "w"), _model(BIG, "another"), _model(OTHER, "w")]
    with WeightFile(tmp_path / "stage.weights") as weights:
        assert [weights.take(model) for model in models] == [1, 0, 1]
        for index, model in enumerate(models):
            ir.save(model, tmp_path / f"{index}.onnx")
    # Two tensors; the second starts at the next page after the first.
    assert (tmp_path / "stage.weights").stat().st_size == 8192 + OTHER.nbytes
    x = np.random.default_rng(2).standard_normal((3, 40), dtype=np.float32)
    for index, weight in enumerate((BIG, BIG, OTHER)):
        path = tmp_path / f"{index}.onnx"
        assert path.stat().st_size < BIG.nbytes
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (got,) = session.run(None, {"x": x})
        np.testing.assert_allclose(got, x @ weight + x @ SMALL, atol=1e-4)


def test_small_tensors_stay_in_the_graph(tmp_path: Path) -> None:
    model = _model(BIG, "w")
    with WeightFile(tmp_path / "stage.weights") as weights:
        weights.take(model)
    initializers = model.graph.initializers
    assert isinstance(initializers["w"].const_value, ir.ExternalTensor)
    assert not isinstance(initializers["small"].const_value, ir.ExternalTensor)


def test_types_with_the_same_bytes_keep_their_type(tmp_path: Path) -> None:
    numbers = np.arange(400, dtype=np.int32)
    model = make_model(
        [
            helper.make_node("Cast", ["i"], ["a"], to=1),
            helper.make_node("Add", ["a", "f"], ["b"]),
            helper.make_node("Add", ["b", "x"], ["y"]),
        ],
        inputs={"x": [400]},
        outputs={"y": [400]},
        constants={"i": numbers, "f": numbers.view(np.float32)},
    )
    with WeightFile(tmp_path / "stage.weights") as weights:
        assert weights.take(model) == 1
        ir.save(model, tmp_path / "g.onnx")
    session = ort.InferenceSession(str(tmp_path / "g.onnx"), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"x": np.zeros(400, np.float32)})
    np.testing.assert_allclose(got, numbers)
