"""TensorRT-RTX takes the Python plugin: parse and build, in a child process, without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugins.tensorrt_glue.rtx import MSDA, POOL, SHAPES, needs_rtx, parse_and_build

pytestmark = [pytest.mark.trt, needs_rtx]
TAKEN = "Found registered plugin: {}. Importing this node as a plugin."
EXPANDED = "Found registered local function: {}. Importing as a local function."


@pytest.mark.parametrize(
    ("op", "dtype", "seen"),
    [
        (MSDA, "float32", "DataType.FLOAT"),
        (MSDA, "float16", "DataType.HALF"),
        (MSDA, "bfloat16", "DataType.BF16"),
        (POOL, "float32", "DataType.FLOAT"),
        (POOL, "float16", "DataType.HALF"),
    ],
)
def test_the_plugin_is_taken_and_built(tmp_path: Path, op: str, dtype: str, seen: str) -> None:
    told = parse_and_build(tmp_path, op, dtype, function=True)
    assert told["parsed"], told["errors"]
    assert TAKEN.format(op) in told["log"]
    assert told["layers"] == ["LayerType.PLUGIN_V3"]
    rank = len(SHAPES[op][-1])
    assert told["output"] == [[-1, -1, 2, 8] if rank == 4 else [-1, 8], seen]
    assert told["engine_bytes"] > 10_000
    assert told["names_the_plugin"]


def test_a_dropped_plugin_shows_in_the_log(tmp_path: Path) -> None:
    told = parse_and_build(tmp_path, MSDA, "float32", function=True, plugin="none")
    assert told["parsed"], told["errors"]
    assert TAKEN.format(MSDA) not in told["log"]
    assert any("Importing as a local function" in line for line in told["log"]), told["log"]
    assert len(told["layers"]) > 20
    assert not told["names_the_plugin"]


def test_without_plugin_and_function_the_node_is_refused(tmp_path: Path) -> None:
    told = parse_and_build(tmp_path, MSDA, "float32", plugin="none")
    assert not told["parsed"]
    assert any("Plugin not found" in error for error in told["errors"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"types": ["float16", "int32", "int32", "float16", "float16", "float16"]},
            "expected types float32, int32",
        ),
        (
            {"shapes": [*SHAPES[MSDA][:2], [3], *SHAPES[MSDA][3:]]},
            "'level_start_index' [L] expected 4 on axis 0, got (3,)",
        ),
    ],
    ids=["half-precision locations", "another number of levels"],
)
def test_wrong_types_and_shapes_are_refused(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    told = parse_and_build(tmp_path, MSDA, "float16", **changes)
    assert not told["parsed"]
    assert said in told["stderr"]
