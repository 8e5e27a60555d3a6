"""Polygraphy reads, lints, rewrites and runs every graph that we make.

Two processes run all commands side by side; see `tests.polygraphy_batch`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from visionllm_edge.export.kit import KitOptions, make_kit
from visionllm_edge.runtime.engines.kit_folder import Kit

REPOSITORY = Path(__file__).resolve().parents[1]
TOOLS = ("polygraphy", "onnx_graphsurgeon")
missing = [name for name in TOOLS if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"not installed: {missing}")

# Sizes for the dynamic axes, small, and those of one graph all different.
AXES = {"n": 2, "s": 5, "T": 3, "k": 4, "C": 16}
AXES |= {"R": 2, "No": 3, "K": 5}
AXES |= {"b": 2, "h": 8, "w": 12, "H": 32, "W": 48}
NUMBERS = {
    "past_length": [3],
    "hidden_rows": [4, 1],
    "logit_rows": [1, 0, 1],
    "valid_size": [128, 128],
}
NUMPY = {
    onnx.TensorProto.FLOAT: np.float32,
    onnx.TensorProto.FLOAT16: np.float16,
    onnx.TensorProto.INT64: np.int64,
}
COMMANDS = ("inspect", "lint", "sanitize", "run")


@dataclass(frozen=True)
class Graph:
    """A graph under a name for messages."""

    name: str
    path: Path


def graphs_of(bundle: Path, kit: Path) -> list[Graph]:
    """Canonical, lowered for the CPU, lowered for a TensorRT without plugins."""
    stages = sorted((bundle / "stages").glob("*.onnx"))
    kit_graphs = sorted((kit / "graphs").glob("*.onnx"))
    return [Graph(f"bundle/{p.name}", p) for p in stages] + [
        Graph(f"kit/{p.name}", p) for p in kit_graphs
    ]


def inputs_for(path: Path) -> dict[str, Any]:
    """Numbers of the right kind: lengths and sizes are no random integers."""
    model = onnx.load(path, load_external_data=False)
    rng = np.random.default_rng(1)
    out: dict[str, Any] = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        dtype = NUMPY[kind.elem_type]
        if value.name in NUMBERS:
            out[value.name] = np.array(NUMBERS[value.name], dtype)
        else:
            shape = [AXES.get(d.dim_param, d.dim_value) for d in kind.shape.dim]
            out[value.name] = rng.normal(0, 1, shape).astype(dtype)
    return out


def command_lines(graph: Graph, folder: Path) -> dict[str, list[str]]:
    from polygraphy.json import save_json

    model, data = str(graph.path), folder / f"{graph.name.replace('/', '.')}.json"
    save_json([inputs_for(graph.path)], str(data))
    given = ["--load-inputs", str(data)]
    return {
        "inspect": ["inspect", "model", model],
        "lint": ["check", "lint", model, *given],
        "sanitize": ["surgeon", "sanitize", model, "-o", str(data.with_suffix(".onnx"))],
        "run": ["run", model, "--onnxrt", *given],
    }


@pytest.fixture(scope="session")
def results(
    tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """Graph name and command -> what came of it."""
    folder = tmp_path_factory.mktemp("polygraphy")
    options = KitOptions(precision="fp32", plugins=False)
    kit = make_kit(tiny_bundle, folder / "kit", "jetson-orin-jp6", options)
    graphs = graphs_of(tiny_bundle, kit)
    assert len(graphs) == 3 * len(Kit.open(kit).plan.stages)
    lines = {
        f"{graph.name} {command}": arguments
        for graph in graphs
        for command, arguments in command_lines(graph, folder).items()
    }
    return run_side_by_side(lines, folder)


def run_side_by_side(lines: dict[str, list[str]], folder: Path) -> dict[str, dict[str, Any]]:
    """Two processes; every second command each, so that both get large and small graphs."""
    names = list(lines)
    halves = [names[0::2], names[1::2]]
    children = []
    for index, half in enumerate(halves):
        path = folder / f"commands{index}.json"
        path.write_text(json.dumps([lines[name] for name in half]), encoding="utf-8")
        children.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.polygraphy_batch", str(path)],
                # ONNX Runtime's shape inference leaves a model where it stands when it gives up,
                # as it does on a function that is one operator of its own.
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    out: dict[str, dict[str, Any]] = {}
    for half, child in zip(halves, children, strict=True):
        stdout, stderr = child.communicate(timeout=600)
        assert child.returncode == 0, stderr[-3000:]
        answers = [json.loads(line) for line in stdout.splitlines()]
        out |= dict(zip(half, answers, strict=True))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_polygraphy_works_on_every_graph(command: str, results: dict[str, dict[str, Any]]) -> None:
    chosen = {name: r for name, r in results.items() if name.endswith(f" {command}")}
    assert len(chosen) == len(results) // len(COMMANDS)
    failed = {name: r["text"] for name, r in chosen.items() if r["status"] != 0}
    assert not failed, "\n".join(f"{name}:\n{text}" for name, text in failed.items())


@pytest.mark.slow
def test_a_broken_graph_is_noticed(tmp_path: Path, results: dict[str, dict[str, Any]]) -> None:
    """The commands can fail: a node that reads a tensor which nobody makes."""
    name = next(name for name in results if "det_masks" in name and name.endswith(" lint"))
    arguments = list(results[name]["arguments"])
    model = onnx.load(arguments[2], load_external_data=False)
    model.graph.node[0].input[0] = "nobody_makes_this"
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(model.SerializeToString())
    arguments[2] = str(broken)
    (answer,) = run_side_by_side({"lint": arguments}, tmp_path).values()
    assert answer["status"] != 0
