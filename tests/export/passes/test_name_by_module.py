"""Nodes speak of the module that they came from."""

from __future__ import annotations

import onnx_ir as ir

from visionllm_edge.benchmarks.bench.profile import module_of
from visionllm_edge.export.passes.name_by_module import name_by_module

SCOPES = "pkg.torch.onnx.name_scopes"


def model(*scopes: str | None) -> ir.Model:
    """One node per note; None is a node without."""
    x = ir.Value(name="x")
    nodes, value = [], x
    for index, scope in enumerate(scopes):
        node = ir.node("Relu", [value], name=f"node_{index}")
        if scope is not None:
            node.metadata_props[SCOPES] = scope
        nodes.append(node)
        value = node.outputs[0]
    return ir.Model(ir.Graph([x], [value], nodes=nodes, opset_imports={"": 19}), ir_version=9)


def test_the_innermost_module_and_the_call() -> None:
    made = model("['', 'tower', 'tower.fc1', 'linear']", "['', 'tower', 'tower.fc1', 'linear']")
    assert name_by_module(made) == 2
    assert [node.name for node in made.graph] == ["tower.fc1/linear", "tower.fc1/linear.2"]
    assert module_of("tower.fc1/linear.2") == "tower.fc1"


def test_sizes_belong_to_no_module() -> None:
    made = model("['_empty_nn_module_stack_from_metadata_hook', 'sym_size_int']", "['', 'add']")
    name_by_module(made)
    assert [node.name for node in made.graph] == ["sym_size_int", "add"]
    assert module_of("add") == ""


def test_nodes_without_a_readable_note_keep_their_names() -> None:
    made = model(None, "not a list", "[1]", "[]")
    assert name_by_module(made) == 0
    assert [node.name for node in made.graph] == [f"node_{i}" for i in range(4)]


def test_a_graph_built_by_hand_names_modules_alone() -> None:
    assert module_of("model.layers.0.mlp.down_proj") == "model.layers.0.mlp.down_proj"
