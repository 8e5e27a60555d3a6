"""A kit of two hand-made graphs: plain sums with external weights, and one semantic node."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from visionllm_edge.plugins.ms_deform_attn.spec import MS_DEFORM_ATTN
from visionllm_edge.plugins.semantic_op import DOMAIN
from visionllm_edge.runtime.engines.kit_folder import write_kit_plan
from visionllm_edge.runtime.engines.plan import (
    Golden,
    KitPlan,
    KitTarget,
    NodeForm,
    Profile,
    ShapeRange,
    StagePlan,
)

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)
MANIFEST = Path(__file__).parents[1] / "manifest_example.json"
NODE = "node_attend"
ROWS = 64
_RNG = np.random.default_rng(3)
WEIGHT = _RNG.normal(0, 1, (ROWS, ROWS)).astype(np.float32)


def sums_graph(path: Path, weights: str = "sums.weights", *, shift: float = 0.0) -> None:
    """y = (x + shift) @ WEIGHT; the weights stand in a file beside the graph."""
    weight = numpy_helper.from_array(WEIGHT, "weight")
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "shift"], ["moved"], name="move"),
            helper.make_node("MatMul", ["moved", "weight"], ["y"], name="multiply"),
        ],
        "sums",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", ROWS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", ROWS])],
        [weight, numpy_helper.from_array(np.array([shift], np.float32), "shift")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path, save_as_external_data=True, location=weights, size_threshold=100)


def attention_graph(path: Path, *, function: bool = True) -> None:
    """One MultiScaleDeformableAttention node over two levels (4x4 and 2x2)."""
    node = helper.make_node(
        MS_DEFORM_ATTN.name,
        ["value", "shapes", "starts", "locations", "weights"],
        ["sampled"],
        name=NODE,
        domain=DOMAIN,
        plugin_version="1",
        plugin_namespace="visionllm",
    )
    value = helper.make_tensor_value_info("value", TensorProto.FLOAT, [1, 20, 2, 8])
    places = helper.make_tensor_value_info("locations", TensorProto.FLOAT, [1, 5, 2, 2, 3, 2])
    shares = helper.make_tensor_value_info("weights", TensorProto.FLOAT, [1, 5, 2, 2, 3])
    graph = helper.make_graph(
        [node, helper.make_node("Neg", ["sampled"], ["out"], name="negate")],
        "attention",
        [value, places, shares],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 5, 2, 8])],
        [
            numpy_helper.from_array(np.array([[4, 4], [2, 2]], np.int32), "shapes"),
            numpy_helper.from_array(np.array([0, 16], np.int32), "starts"),
        ],
    )
    body = MS_DEFORM_ATTN.onnx_function(opset=18, levels=2)
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)],
        functions=[body] if function else [],
        ir_version=9,
    )
    onnx.save(model, path)


def form(kind: str) -> NodeForm:
    return NodeForm(NODE, MS_DEFORM_ATTN.name, kind, "as the test wants it")


def sums_plan(**changes: Any) -> StagePlan:
    shapes = {"x": ShapeRange((1, ROWS), (2, ROWS), (8, ROWS))}
    content: dict[str, Any] = {
        "stage": "sums",
        "graph": "graphs/sums.onnx",
        "engine": "engines/sums.engine",
        "precision": "fp32",
        "profiles": (Profile("all", shapes),),
        "golden": Golden("files/golden/sums.npz", {"y": 1e-3}),
    }
    return StagePlan(**{**content, **changes})


def attention_plan(kind: str = "plugin") -> StagePlan:
    return StagePlan(
        stage="attention",
        graph="graphs/attention.onnx",
        engine="engines/attention.engine",
        precision="fp32",
        forms=(form(kind),),
    )


def golden_arrays() -> dict[str, Any]:
    x = _RNG.normal(0, 1, (3, ROWS)).astype(np.float32)
    return {"in.x": x, "out.y": (x.astype(np.float64) @ WEIGHT).astype(np.float32)}


def manifest_template() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(MANIFEST.read_text(encoding="utf-8"))
    content.pop("files", None)
    content["model"].pop("detector", None)
    content["preprocess"].pop("detector", None)
    content["target"] = {"name": "rtx-ada", "backend": "tensorrt_rtx", "precision": "fp32"}

    def port(name: str, shape: list[int | str]) -> dict[str, object]:
        return {"name": name, "dtype": "float32", "shape": shape}

    content["stages"] = {
        "sums": {
            "inputs": [port("x", ["n", ROWS])],
            "outputs": [port("y", ["n", ROWS])],
            "variants": [{"bucket": None, "model": "engines/sums.engine"}],
            "parity": {"golden": {"file": "golden/sums.npz", "bucket": None, "limits": {}}},
        },
        "attention": {
            "inputs": [
                port("value", [1, 20, 2, 8]),
                port("locations", [1, 5, 2, 2, 3, 2]),
                port("weights", [1, 5, 2, 2, 3]),
            ],
            "outputs": [port("out", [1, 5, 2, 8])],
            "variants": [{"bucket": None, "model": "engines/attention.engine"}],
        },
    }
    return content


def write_kit(
    folder: Path,
    *,
    attention: str = "plugin",
    function: bool = True,
    target: KitTarget | None = None,
    stages: tuple[StagePlan, ...] | None = None,
) -> Path:
    """A kit for an RTX 40 card, or for the target given."""
    (folder / "graphs").mkdir(parents=True)
    for name in ("golden", "tables", "tokenizer"):
        (folder / "files" / name).mkdir(parents=True)
    sums_graph(folder / "graphs" / "sums.onnx")
    attention_graph(folder / "graphs" / "attention.onnx", function=function)
    np.savez(folder / "files" / "golden" / "sums.npz", **golden_arrays())
    np.save(folder / "files" / "tables" / "embed_tokens.npy", np.ones((3, 4), np.float32))
    np.save(folder / "files" / "tables" / "superlink_det.npy", np.ones((4, 8), np.float32))
    (folder / "files" / "tokenizer" / "tokenizer.json").write_text("{}", encoding="utf-8")
    payload = {
        path.relative_to(folder / "files").as_posix(): path.relative_to(folder).as_posix()
        for path in (folder / "files").rglob("*")
        if path.is_file()
    }
    plan = KitPlan(
        target=target or KitTarget("rtx-ada", "tensorrt_rtx", "fp32", (89,), "1.7"),
        created_by={"visionllm-edge": "0"},
        stages=(sums_plan(), attention_plan(attention)) if stages is None else stages,
        manifest=manifest_template(),
        payload=payload,
    )
    write_kit_plan(folder, plan)
    return folder
