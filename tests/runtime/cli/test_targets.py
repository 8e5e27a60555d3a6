from __future__ import annotations

import json

from click.testing import CliRunner

from visionllm_edge.runtime.cli import main
from visionllm_edge.runtime.targets import TARGETS


def _run(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["targets", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_table_lists_every_target_with_its_proof() -> None:
    head, *rows = _run().splitlines()
    assert head.split() == ["target", "sm", "backend", "precisions", "proof", "device"]
    assert [row.split()[0] for row in rows] == list(TARGETS)
    assert "8.7   TensorRT 10.3     fp32 fp16*" in next(r for r in rows if "orin-jp6" in r)
    assert "not run" in next(r for r in rows if r.startswith("h100"))


def test_one_target_shows_facts_and_their_sources() -> None:
    text = _run("jetson-orin-jp6")
    assert "TensorRT 10.3" in text
    assert "linear_is_nearest  True" in text
    assert "onnx-tensorrt 10.1-GA" in text


def test_json_holds_the_same() -> None:
    assert [row["name"] for row in json.loads(_run("--json"))] == list(TARGETS)
    one = json.loads(_run("rtx-ada", "--json"))
    assert one["sm"] == [89]
    assert one["release"]["node_with_function"]["value"] == "namespace"
    assert one["release"]["node_with_function"]["source"].startswith("seen")


def test_an_unknown_target_is_one_message() -> None:
    result = CliRunner().invoke(main, ["targets", "toaster"])
    assert result.exit_code == 1
    assert "target 'toaster'" in result.stderr
