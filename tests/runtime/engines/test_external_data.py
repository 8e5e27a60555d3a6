"""Weights outside of a graph: found without the onnx package, and refused when unsafe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.runtime.engines.small_kit import sums_graph
from visionllm_edge.runtime.engines.external_data import (
    check_external_data,
    external_tensors,
)
from visionllm_edge.runtime.errors import BundleError


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "graphs" / "sums.onnx"
    path.parent.mkdir()
    sums_graph(path)
    return path


def relocated(graph: Path, location: str, **more: str) -> None:
    """Point the graph's weight somewhere else, as an attacker would."""
    model = onnx.load(graph, load_external_data=False)
    (weight,) = [t for t in model.graph.initializer if t.external_data]
    del weight.external_data[:]
    for key, value in {"location": location, **more}.items():
        weight.external_data.add(key=key, value=value)
    graph.write_bytes(model.SerializeToString())


def test_the_walk_agrees_with_onnx(graph: Path) -> None:
    model = onnx.load(graph, load_external_data=False)
    expected = {
        t.name: {e.key: e.value for e in t.external_data}
        for t in model.graph.initializer
        if t.external_data
    }
    (found,) = external_tensors(graph)
    assert {found.name} == set(expected)
    entries = expected[found.name]
    assert (found.location, found.offset, found.length) == (
        entries["location"],
        int(entries.get("offset", "0")),
        int(entries["length"]),
    )


def test_tensors_in_attributes_subgraphs_and_functions_are_found(tmp_path: Path) -> None:
    def outside(name: str) -> TensorProto:
        tensor = numpy_helper.from_array(np.ones(4, np.float32), name)
        onnx.external_data_helper.set_external_data(tensor, f"{name}.weights")
        tensor.ClearField("raw_data")
        return tensor

    value = helper.make_tensor_value_info("v", TensorProto.FLOAT, [4])
    branch = helper.make_graph(
        [helper.make_node("Identity", ["inner"], ["v"])], "then", [], [value], [outside("inner")]
    )
    constant = helper.make_node("Constant", [], ["c"], value=outside("attribute"))
    choice = helper.make_node("If", ["b"], ["v"], then_branch=branch, else_branch=branch)
    body = helper.make_node("Constant", [], ["o"], value=outside("body"))
    function = helper.make_function("d", "F", [], ["o"], [body], [helper.make_opsetid("", 18)])
    graph = helper.make_graph([constant, choice], "g", [], [value])
    model = helper.make_model(graph, functions=[function])
    path = tmp_path / "g.onnx"
    path.write_bytes(model.SerializeToString())
    names = sorted(tensor.name for tensor in external_tensors(path))
    assert names == ["attribute", "body", "inner", "inner"]


def test_a_good_graph_names_its_weights(graph: Path, tmp_path: Path) -> None:
    assert check_external_data(graph, tmp_path) == ["graphs/sums.weights"]


@pytest.mark.parametrize("location", ["../../outside", "/outside", "a/../b", "a\\b", ""])
def test_a_location_that_leads_out_is_refused(graph: Path, tmp_path: Path, location: str) -> None:
    relocated(graph, location)
    with pytest.raises(BundleError, match="weight"):
        check_external_data(graph, tmp_path)


def test_a_link_is_refused_though_its_target_is_fine(graph: Path, tmp_path: Path) -> None:
    weights = graph.parent / "sums.weights"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="symbolic link"):
        check_external_data(graph, tmp_path)


def test_a_linked_folder_is_refused(graph: Path, tmp_path: Path) -> None:
    graph.parent.rename(tmp_path / "real")
    (tmp_path / "graphs").symlink_to(tmp_path / "real")
    with pytest.raises(BundleError, match="symbolic link"):
        check_external_data(graph, tmp_path)


def test_a_graph_outside_of_the_kit_is_refused(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="outside"):
        check_external_data(graph, tmp_path / "other")


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"offset": "1", "length": "16384"}, "expected 16385 bytes"),
        ({"offset": "-1"}, "number of bytes"),
        ({"length": "many"}, "number of bytes"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(
    graph: Path, tmp_path: Path, entries: dict[str, str], words: str
) -> None:
    relocated(graph, "sums.weights", **entries)
    with pytest.raises(BundleError, match=words):
        check_external_data(graph, tmp_path)


def test_missing_weights_are_refused(graph: Path, tmp_path: Path) -> None:
    relocated(graph, "nothing.weights")
    with pytest.raises(BundleError, match=r"nothing\.weights.*missing"):
        check_external_data(graph, tmp_path)


@pytest.mark.parametrize("content", [b"\xff" * 40, b"\x3a\x7f\x00", b"\x0b"])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError, match="cannot be read as an ONNX model"):
        external_tensors(path)
