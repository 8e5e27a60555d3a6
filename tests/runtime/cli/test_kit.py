"""`kit build` and `kit status` on the command line; the builder is replaced by a fast one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.runtime.engines.small_kit import needs_rtx, write_kit
from visionllm_edge.runtime.cli import main
from visionllm_edge.runtime.engines import kit_build
from visionllm_edge.runtime.engines.request import BuildAnswer, BuildRequest

pytestmark = [needs_rtx, pytest.mark.trt]


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def build(request: BuildRequest, *, phase: Any) -> BuildAnswer:
        Path(request.engine).write_bytes(b"engine")
        return BuildAnswer(None, None, "1.7", 6, 0.1, 0.2, 1000, 3, 0, 0)

    monkeypatch.setattr(kit_build, "run_build", build)
    monkeypatch.setenv("VISIONLLM_EDGE_CACHE", str(tmp_path / "cache"))
    return write_kit(tmp_path / "kit")


def test_status_before_and_after_a_build(kit: Path, tmp_path: Path) -> None:
    before = CliRunner().invoke(main, ["kit", "status", str(kit)])
    assert before.exit_code == 0 and before.stdout.count("not built") == 2
    out = tmp_path / "out"
    built = CliRunner().invoke(main, ["kit", "build", str(kit), "-o", str(out)])
    assert built.exit_code == 0, built.output
    assert "sums" in built.stdout and "2 engines" in built.stdout
    assert "sealed out" in built.stderr
    after = CliRunner().invoke(main, ["kit", "status", str(kit), "--json"])
    told = json.loads(after.stdout)
    assert told["sums"]["engine_bytes"] == 6


def test_json_of_a_build(kit: Path) -> None:
    done = CliRunner().invoke(main, ["kit", "build", str(kit), "--stage", "sums", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["bundle"] is None and [s["name"] for s in told["stages"]] == ["sums"]


def test_the_cache_can_be_left_out(kit: Path, tmp_path: Path) -> None:
    arguments = ["kit", "build", str(kit), "--no-cache"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert not (tmp_path / "cache").exists()


def test_what_is_no_kit_is_one_message(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["kit", "build", str(tmp_path)])
    assert done.exit_code == 1 and done.stdout == ""
    assert done.stderr.startswith("Error: kit ") and "kit.json" in done.stderr


def test_make_is_part_of_the_group() -> None:
    told = CliRunner().invoke(main, ["kit", "--help"]).stdout
    assert all(name in told for name in ("make", "build", "status"))
