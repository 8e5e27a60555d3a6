"""TensorRT-RTX's parser takes every plugin-free stage graph of the tiny bundle (no GPU needed)."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from visionllm_edge.export.canonical import load_canonical
from visionllm_edge.export.lowering import lower
from visionllm_edge.export.passes.share_weights import WeightFile
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.targets import TARGETS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.trt,
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None,
        reason="TensorRT-RTX is not installed: pip install 'visionllm-edge[rtx]'",
    ),
]

# A parser that fails can end the process, so it has one of its own.
PARSE = """
import json, sys
import tensorrt_rtx as trt
logger = trt.Logger(trt.Logger.ERROR)
out = {}
for path in sys.argv[1:]:
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse_from_file(path)
    out[path] = {
        "errors": [parser.get_error(i).desc() for i in range(parser.num_errors)],
        "types": {
            tensor.name: str(tensor.dtype).split(".")[-1]
            for tensor in map(network.get_output, range(network.num_outputs))
        } if parsed else {},
    }
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def parsed(
    tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("lowered")
    bundle = Bundle.open(tiny_bundle, verify=False)
    for stage, spec in bundle.manifest.stages.items():
        for precision in ("fp32", "fp16"):
            model = load_canonical(bundle, stage, spec.variants[0].bucket)
            lower(model, TARGETS["rtx-ada"], precision=precision, plugins=False)
            with WeightFile(folder / f"{stage}.{precision}.weights") as weights:
                weights.take(model)
                ir.save(model, folder / f"{stage}.{precision}.onnx")
    paths = sorted(str(path) for path in folder.glob("*.onnx"))
    done = subprocess.run(
        [sys.executable, "-c", PARSE, *paths], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"parser exited {done.returncode}:\n{done.stderr}"
    content = json.loads(done.stdout)
    return {Path(path).stem: content[path] for path in paths}


def test_every_graph_is_parsed(parsed: dict[str, dict[str, Any]], tiny_bundle: Path) -> None:
    stages = Bundle.open(tiny_bundle, verify=False).manifest.stages
    assert set(parsed) == {f"{stage}.{kind}" for stage in stages for kind in ("fp32", "fp16")}
    assert {name: entry["errors"] for name, entry in parsed.items() if entry["errors"]} == {}


def test_the_ends_have_the_types_of_the_lowering(parsed: dict[str, dict[str, Any]]) -> None:
    types = parsed["llm_decoder.fp16"]["types"]
    assert types["logits"] == types["hidden"] == "FLOAT"
    assert types["present.0.key"] == "HALF"
    assert set(parsed["det_decoder.fp16"]["types"].values()) == {"FLOAT"}
