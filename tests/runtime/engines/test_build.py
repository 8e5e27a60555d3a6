"""The building process: real TensorRT-RTX builds, crashes, dropped plugins, interruptions."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.engines.small_kit import (
    NODE,
    attention_graph,
    attention_plan,
    golden_arrays,
    needs_rtx,
    sums_graph,
    sums_plan,
)
from visionllm_edge.runtime.bundle import sha256_of_file
from visionllm_edge.runtime.engines.build import run_build, run_check
from visionllm_edge.runtime.engines.request import BuildRequest, CheckRequest
from visionllm_edge.runtime.errors import BackendError, BundleError, PluginError
from visionllm_edge.runtime.ports import Port


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "graphs").mkdir()
    sums_graph(tmp_path / "graphs" / "sums.onnx")
    attention_graph(tmp_path / "graphs" / "attention.onnx")
    return tmp_path


def request(root: Path, **changes: Any) -> BuildRequest:
    content: dict[str, Any] = {
        "plan": sums_plan(),
        "root": str(root),
        "backend": "tensorrt_rtx",
        "log": str(root / "build.log"),
        "engine": str(root / "out.engine"),
        "sm": (89,),
        "timing_cache": str(root / "timing.cache"),
    }
    return BuildRequest(**{**content, **changes})


@needs_rtx
@pytest.mark.trt
def test_an_engine_is_built_and_its_cost_is_known(root: Path) -> None:
    phases: list[str] = []
    answer = run_build(request(root), phase=lambda text, done, total: phases.append(text))
    assert answer.engine_bytes == (root / "out.engine").stat().st_size > 10_000
    assert answer.layers >= 2 and (answer.plugins, answer.functions) == (0, 0)
    # The library alone takes more than this; a machine that builds has less than a TB.
    assert 5e7 < answer.peak_rss_bytes < 1e12
    assert answer.build_s > 0 and answer.version
    assert phases[0] == "parse" and "Building engine" in phases


@needs_rtx
@pytest.mark.trt
@pytest.mark.parametrize("form", ["plugin", "function"])
def test_a_node_becomes_what_was_decided(root: Path, form: str) -> None:
    plugins = "python" if form == "plugin" else "none"
    answer = run_build(request(root, plan=attention_plan(form), plugins=plugins))
    assert (answer.plugins, answer.functions) == ((1, 0) if form == "plugin" else (0, 1))
    assert f"node '{NODE}'" in (root / "build.log").read_text(encoding="utf-8")


@needs_rtx
@pytest.mark.trt
@pytest.mark.parametrize("function", [True, False])
def test_a_dropped_plugin_is_refused_by_name(root: Path, function: bool) -> None:
    """With the function in the file the parser would silently take it; without, it finds none."""
    attention_graph(root / "graphs" / "attention.onnx", function=function)
    with pytest.raises(PluginError) as caught:
        run_build(request(root, plan=attention_plan("plugin"), plugins="none"))
    message = str(caught.value)
    assert "stage 'attention'" in message and "MultiScaleDeformableAttention" in message
    assert ("became a function" in message) == function
    assert "Nothing was built" in message and not (root / "out.engine").exists()


@needs_rtx
@pytest.mark.trt
def test_a_plugin_that_nobody_asked_for_is_refused(root: Path) -> None:
    with pytest.raises(PluginError, match=f"node '{NODE}'.*expected form 'function', became a pl"):
        run_build(request(root, plan=attention_plan("function"), plugins="python"))


@needs_rtx
@pytest.mark.trt
def test_a_library_that_is_none_is_refused_by_name(root: Path) -> None:
    wrong = root / "plugins.so"
    wrong.write_bytes(b"not a library")
    with pytest.raises(PluginError, match=r"plugins\.so"):
        run_build(
            request(root, plan=attention_plan("plugin"), plugins="library", libraries=(str(wrong),))
        )


@needs_rtx
@pytest.mark.trt
def test_linked_weights_are_refused_before_the_parser_sees_them(root: Path) -> None:
    weights = root / "graphs" / "sums.weights"
    weights.rename(root / "elsewhere")
    weights.symlink_to(root / "elsewhere")
    with pytest.raises(BundleError, match="symbolic link"):
        run_build(request(root))
    assert (root / "build.log").read_text(encoding="utf-8") == ""


@needs_rtx
@pytest.mark.trt
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"plan": sums_plan(flags=("NO_SUCH",))}, "stage 'sums'.*no builder flag NO_SUCH"),
        ({"sm": (87,)}, "stage 'sums'.*the target asks for SM87"),
        ({"plan": sums_plan(profiles=())}, "stage 'sums'"),
    ],
)
def test_what_cannot_be_built_names_the_stage(
    root: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(BackendError, match=words):
        run_build(request(root, **changes))


@needs_rtx
@pytest.mark.trt
def test_a_graph_that_cannot_be_parsed_gives_tensorrt_s_reason(root: Path) -> None:
    import onnx

    path = root / "graphs" / "sums.onnx"
    model = onnx.load(path, load_external_data=False)
    model.graph.node[0].op_type = "NonZero"
    del model.graph.node[0].input[1]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BackendError, match=r"stage 'sums'.*cannot parse.*node 'move'"):
        run_build(request(root))


def module(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> str:
    """A stand-in for the child: a module on the path of the process."""
    text = "import os, signal, sys, time\n" + textwrap.dedent(body)
    (folder / "stand_in_child.py").write_text(text, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return "stand_in_child"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGABRT)", "was ended by SIGABRT"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL.*want of memory"),
        ("sys.exit(3)", "exited with 3"),
        ("pass", "left no answer"),
    ],
)
def test_a_crash_names_the_stage_and_the_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, words: str
) -> None:
    program = f"print('the parser says goodbye', file=sys.stderr, flush=True)\n{body}\n"
    child = module(tmp_path, monkeypatch, program)
    with pytest.raises(BackendError, match=f"stage 'sums'.*{words}") as caught:
        run_build(request(tmp_path), module=child)
    assert "the parser says goodbye" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_noise_of_a_library_does_not_break_the_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = json.dumps({"phase": "Building", "done": 1, "total": 2})
    child = module(tmp_path, monkeypatch, f"print('[noise]\\n{{}}\\n' + {event!r}, flush=True)")
    seen: list[tuple[str, int, int]] = []
    with pytest.raises(BackendError):
        run_build(request(tmp_path), phase=lambda *event: seen.append(event), module=child)
    assert seen == [("Building", 1, 2)]


@needs_rtx
@pytest.mark.trt
def test_a_check_says_why_the_engine_does_not_run(root: Path) -> None:
    """A real process, a real TensorRT: without a GPU, or with these bytes, nothing runs."""
    engine = root / "out.engine"
    engine.write_bytes(b"no engine")
    np.savez(root / "golden.npz", **golden_arrays())
    port = (Port("x", "float32", ("n", 64)),)
    log = root / "build.log"
    log.write_text("", encoding="utf-8")
    check = CheckRequest(
        request(root), sha256_of_file(engine), str(root / "golden.npz"), port, port
    )
    with pytest.raises(BackendError):
        run_check(check)


def test_a_check_that_crashes_names_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = module(tmp_path, monkeypatch, "os.kill(os.getpid(), signal.SIGSEGV)")
    (tmp_path / "build.log").write_text("", encoding="utf-8")
    check = CheckRequest(request(tmp_path), "d1", "golden.npz", (), ())
    with pytest.raises(BackendError, match=r"stage 'sums'.*SIGSEGV"):
        run_check(check, module=child)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_interruption_ends_the_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        'print(\'{"phase": "\' + str(os.getpid()) + \'", "done": 0, "total": 1}\', flush=True)\n'
        "time.sleep(600)\n"
    )
    child = module(tmp_path, monkeypatch, program)
    pids: list[int] = []

    def interrupt(text: str, done: int, total: int) -> None:
        pids.append(int(text))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_build(request(tmp_path), phase=interrupt, module=child)
    assert pids and not Path(f"/proc/{pids[0]}").exists()
