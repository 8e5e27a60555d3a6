"""Processes of peers: started, read, compared, refused. The runtimes themselves are not needed."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from visionllm_edge.benchmarks.bandwidth import Bandwidth
from visionllm_edge.benchmarks.peers import rounds as rounds_module
from visionllm_edge.benchmarks.peers.llm import PEERS, chosen_variants, main, summarise
from visionllm_edge.benchmarks.peers.measure import Workload, measure
from visionllm_edge.benchmarks.peers.peer import Run, read_last_line
from visionllm_edge.benchmarks.peers.process import import_path, run_process
from visionllm_edge.benchmarks.peers.rounds import compare
from visionllm_edge.runtime.errors import BackendError, ConfigError

WORKLOAD = Workload(prompt=20, contexts=(4, 9), steps=3, prefills=2, vocabulary=50)


class Counting:
    """Notes what it is asked, and takes 5 ms a prompt and 1 ms a token."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.prompts: list[Sequence[int]] = []

    def prefill(self, tokens: Sequence[int]) -> int:
        self.asked.append(len(tokens))
        self.prompts.append(tokens)
        time.sleep(0.005)
        return 7

    def decode(self, token: int) -> int:
        self.asked.append(-token)
        time.sleep(0.001)
        return token + 1


def test_the_steps_are_the_same_for_every_runtime() -> None:
    engine = Counting()
    got = measure(engine, WORKLOAD)
    decoded = [-7, -8, -9]
    assert engine.asked[:6] == [20, *decoded, 20, 20]  # warm-up, then two timed prompts
    assert engine.asked[6:] == [4, *decoded, -10, 9, *decoded, -10]
    assert all(3 <= token < 50 for prompt in engine.prompts for token in prompt)
    again = Counting()
    measure(again, WORKLOAD)
    assert again.prompts == engine.prompts
    decode = got["decode"]
    assert isinstance(decode, dict) and set(decode) == {"4", "9"}
    assert all(100 < speed < 1000 for speed in decode.values())
    assert 500 < float(str(got["prefill"])) < 4000


def test_a_process_is_read_and_its_memory_known() -> None:
    code = (
        "import time; x = bytearray(b'1') * 100_000_000; time.sleep(0.2); print('noise'); "
        "print('{\"prefill\": 3}')"
    )
    ours = bytearray(b"1") * 300_000_000  # is not the child's
    done = run_process([sys.executable, "-c", code], name="test")
    del ours
    assert read_last_line(done.stdout) == {"prefill": 3}
    assert 100e6 < done.peak_rss_bytes < 200e6
    assert done.foreign_cores >= 0


def test_a_process_that_fails_is_told_with_its_last_lines() -> None:
    with pytest.raises(BackendError, match=r"runtime X: expected python.*ended with 3:\nwhy"):
        code = "import sys; print('why', file=sys.stderr); sys.exit(3)"
        run_process([sys.executable, "-c", code], name="runtime X")
    with pytest.raises(BackendError, match="cannot start '/nowhere'"):
        run_process(["/nowhere"], name="runtime X")


def test_another_environment_finds_the_modules_and_needs_nothing_else(tmp_path: Path) -> None:
    path = import_path(tmp_path / "modules")
    for name in ("genai", "openvino_int4", "torch_bf16"):
        # -S: an interpreter without any installed package.
        module = f"visionllm_edge.benchmarks.peers.{name}"
        done = subprocess.run(
            [sys.executable, "-S", "-m", module, "--help"],
            env={"PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "--contexts" in done.stdout


def test_every_runtime_has_a_file_and_an_entry(repository: Path) -> None:
    shared = {"__init__", "llm", "measure", "peer", "process", "rounds"}
    shared |= {"vision", "vision_contestants", "vision_stage"}  # peers of another kind
    folder = repository / "benchmarks" / "peers"
    files = {path.stem for path in folder.glob("*.py")} - shared
    defining = set()
    for name in files:
        tree = ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        if any(isinstance(call.func, ast.Name) and call.func.id == "Peer" for call in calls):
            defining.add(name)
    assert defining == files and len(files) == len(PEERS)
    assert len({peer.name for peer in PEERS}) == len(PEERS)


def test_llama_bench_is_read() -> None:
    (llama,) = [peer for peer in PEERS if peer.name == "llama-cpp"]
    plain, huge = llama.runs("bench", "model.gguf", WORKLOAD).values()
    prompt, decode = plain
    assert prompt.command[:3] == ("bench", "-m", "model.gguf")
    assert decode.command[decode.command.index("-d") :][:2] == ("-d", "4,9")
    assert huge[0].environment and not prompt.environment
    common = {"build_commit": "abc", "model_type": "llama 1B Q4_0", "model_size": 600}
    row = {**common, "n_prompt": 20, "n_gen": 0, "n_depth": 0, "avg_ts": 80.0, "avg_ns": 25e7}
    got = prompt.read("warning: something\n" + json.dumps([row]))
    assert got["prefill"] == 80.0 and got["first_token_s"] == 0.25 and "decode" not in got
    rows = [
        {**common, "n_prompt": 0, "n_gen": 3, "n_depth": depth, "avg_ts": speed, "avg_ns": 1}
        for depth, speed in ((4, 40.0), (9, 30.0))
    ]
    assert decode.read(json.dumps(rows))["decode"] == {"4": 40.0, "9": 30.0}


def process(speed: float) -> Run:
    answer = {
        "prefill": 10 * speed,
        "decode": {"4": speed},
        "bytes_per_token": {"4": 1_000_000_000},
    }
    return Run((sys.executable, "-c", f"print({json.dumps(json.dumps(answer))})"), read_last_line)


def test_variants_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = Bandwidth(40e9, 2, True)
    monkeypatch.setattr(rounds_module, "measure_read_bandwidth", lambda threads: fixed)
    said: list[str] = []
    variants = {"visionllm-edge": (process(30.0),), "other": (process(20.0),)}
    measured = compare(variants, rounds=2, threads=2, note=said.append)
    assert [line.split()[0] for line in said] == [
        *("round", "visionllm-edge", "other", "read"),
        *("round", "other", "visionllm-edge", "read"),
    ]
    assert [one["bandwidth"] for one in measured] == [40e9, 40e9]
    summary = summarise(measured)
    assert summary["ratios"]["visionllm-edge"]["other"] == {
        "prefill": pytest.approx(1.5),
        "decode at 4": pytest.approx(1.5),
    }
    assert summary["bandwidth_share"]["visionllm-edge"]["4"] == pytest.approx(0.75)
    assert summary["variants"]["other"]["tokens_per_s"]["prefill"] == 200.0


def test_ratios_are_medians_of_the_rounds_ratios() -> None:
    def one(ours: float, theirs: float, bandwidth: float) -> dict[str, Any]:
        def row(speed: float) -> dict[str, Any]:
            return {
                "prefill": speed,
                "decode": {"4": speed},
                "bytes_per_token": {"4": 1e9},
                "peak_rss_bytes": 5,
                "foreign_cores": 0.1,
            }

        variants = {"visionllm-edge": row(ours), "other": row(theirs)}
        return {"bandwidth": bandwidth, "variants": variants}

    # A slow spell in the second round, and one that only hit the other in the third.
    summary = summarise([one(20, 10, 40e9), one(2, 1, 4e9), one(20, 1, 40e9)])
    assert summary["ratios"]["visionllm-edge"]["other"]["prefill"] == 2
    assert summary["bandwidth_share"]["visionllm-edge"]["4"] == pytest.approx(0.5)


def test_a_runtime_without_a_model_is_left_out() -> None:
    got = chosen_variants({"ours": ["a/int4", "b/int8"], "torch": ["c"]}, {}, WORKLOAD)
    assert list(got) == ["visionllm-edge (int4)", "visionllm-edge (int8)", "torch bf16"]
    assert all(run.command[0] == sys.executable for runs in got.values() for run in runs)
    with pytest.raises(ConfigError, match=r"Give one of --ours, --llama-cpp"):
        chosen_variants({}, {}, WORKLOAD)


def test_the_command_refuses_to_measure_nothing() -> None:
    done = CliRunner().invoke(main, [])
    assert done.exit_code == 1
    assert "expected at least one model" in done.output
    shown = CliRunner().invoke(main, ["--help"]).output
    assert all(f"--{peer.name}-program" in shown for peer in PEERS)
