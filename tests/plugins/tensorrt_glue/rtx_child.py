"""Runs in a child process: parse one operator's node with TensorRT-RTX and build an engine.

    python rtx_child.py REQUEST.json ANSWER.json

A fault inside TensorRT ends the process, never the tests. Needs no GPU.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from visionllm_edge.plugins.registry import SEMANTIC_OPS
from visionllm_edge.plugins.semantic_op import DOMAIN, PLUGIN_NAMESPACE, PLUGIN_VERSION

ELEMENT_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int32": TensorProto.INT32,
}


def one_node_model(request: dict[str, Any]) -> onnx.ModelProto:
    op = SEMANTIC_OPS[request["op"]]
    names = [port.name for port in op.inputs + op.outputs]
    infos = [
        helper.make_tensor_value_info(name, ELEMENT_TYPES[kind], shape)
        for name, kind, shape in zip(names, request["types"], request["shapes"], strict=True)
    ]
    count = len(op.inputs)
    node = helper.make_node(
        op.name,
        names[:count],
        names[count:],
        name="the_node",
        domain=DOMAIN,
        plugin_version=PLUGIN_VERSION,
        plugin_namespace=PLUGIN_NAMESPACE,
    )
    opsets = [helper.make_opsetid("", 19), helper.make_opsetid(DOMAIN, 1)]
    functions = [op.onnx_function(opset=19)] if request["function"] else []
    graph = helper.make_graph([node], "one_node", infos[:count], infos[count:])
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=9)


def run(request: dict[str, Any]) -> dict[str, Any]:
    if request["plugin"] == "cdll before":  # as Polygraphy does
        ctypes.CDLL(request["library"])
    import tensorrt_rtx as trt

    lines: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            lines.append(message)

    logger = Logger()
    registry = trt.get_plugin_registry()
    if request["plugin"] == "python":
        from visionllm_edge.plugins.tensorrt_glue.python_plugin import register

        register(trt)
    elif request["plugin"] == "cdll":
        ctypes.CDLL(request["library"])
    elif request["plugin"] == "load_library":
        assert registry.load_library(request["library"]) is not None
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    answer: dict[str, Any] = {"parsed": parser.parse(one_node_model(request).SerializeToString())}
    answer["creators"] = sorted(creator.name for creator in registry.all_creators)
    answer["errors"] = [parser.get_error(i).desc() for i in range(parser.num_errors)]
    if answer["parsed"]:
        answer["layers"] = [str(network.get_layer(i).type) for i in range(network.num_layers)]
        output = network.get_output(0)
        answer["output"] = [list(output.shape), str(output.dtype)]
        config = builder.create_builder_config()
        profile = builder.create_optimization_profile()
        for name, sizes in request["profile"].items():
            profile.set_shape(name, *map(tuple, sizes))
        config.add_optimization_profile(profile)
        engine = builder.build_serialized_network(network, config)
        answer["engine_bytes"] = 0 if engine is None else len(bytes(engine))
        answer["names_the_plugin"] = engine is not None and request["op"].encode() in bytes(engine)
    answer["lines"] = [line for line in lines if request["op"] in line]
    answer["log"] = [line for line in lines if "plugin" in line.lower() or "function" in line]
    return answer


if __name__ == "__main__":
    told = run(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(told), encoding="utf-8")
