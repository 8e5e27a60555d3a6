"""Start the process that builds or checks one engine, pass on its progress, tell how it ended."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeVar

from visionllm_edge.runtime.engines.record import GoldenResult
from visionllm_edge.runtime.engines.request import (
    BuildAnswer,
    BuildRequest,
    CheckAnswer,
    CheckRequest,
    read_json,
    write_json,
)
from visionllm_edge.runtime.errors import (
    BackendError,
    BundleError,
    EdgeError,
    ParityError,
    PluginError,
)

__all__ = ["CHECK_MODULE", "CHILD_MODULE", "run_build", "run_check"]

CHILD_MODULE = "visionllm_edge.runtime.engines.child"
CHECK_MODULE = "visionllm_edge.runtime.engines.golden"
_A = TypeVar("_A", BuildAnswer, CheckAnswer)
_LINES_SHOWN = 3
_KINDS: dict[str, type[EdgeError]] = {
    kind.__name__: kind for kind in (BackendError, BundleError, ParityError, PluginError)
}

Phase = Callable[[str, int, int], None]


def run_build(
    request: BuildRequest,
    *,
    phase: Phase = lambda text, done, total: None,
    module: str = CHILD_MODULE,
) -> BuildAnswer:
    """Build one engine in a process of its own.

    Args:
        request: what to build; its log is started anew.
        phase: gets what the builder is doing, the steps done and the steps in all.
        module: what the process runs.

    Raises:
        BackendError: the process crashed or could not build; the message names the stage.
        BundleError: the graph's weights are not plain files of the kit.
        PluginError: a node did not get the form that lowering decided.
    """
    Path(request.log).write_text("", encoding="utf-8")
    return _answer(request, BuildAnswer, request, phase, module)


def run_check(request: CheckRequest, *, module: str = CHECK_MODULE) -> GoldenResult:
    """Run one engine on its golden inputs in a process of its own.

    Raises:
        BackendError: the process crashed, or the engine cannot be loaded or run.
        ParityError: an output is wrong.
    """
    answer = _answer(request, CheckAnswer, request.build, lambda text, done, total: None, module)
    assert answer.result is not None, "an answer without an error has a result"
    return answer.result


def _answer(
    request: BuildRequest | CheckRequest,
    kind: type[_A],
    build: BuildRequest,
    phase: Phase,
    module: str,
) -> _A:
    log = Path(build.log)
    with tempfile.TemporaryDirectory(prefix="visionllm-edge-build-") as folder:
        question, answer = Path(folder) / "request.json", Path(folder) / "answer.json"
        write_json(question, request)
        with log.open("a", encoding="utf-8") as stderr:
            status = _run([sys.executable, "-m", module, str(question), str(answer)], stderr, phase)
        if status != 0 or not answer.is_file():
            raise BackendError(_crash_text(build.plan.name, status, log))
        result = read_json(kind, answer)
    if result.error is not None:
        raise _KINDS.get(result.kind or "", BackendError)(result.error)
    return result


def _run(command: list[str], stderr: IO[str], phase: Phase) -> int:
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    assert child.stdout is not None
    try:
        for line in child.stdout:
            _pass_on(line, phase)
        return child.wait()
    finally:
        # Left early by an interruption: an engine nobody waits for must not go on building.
        if child.poll() is None:
            child.kill()
            child.wait()
        child.stdout.close()


def _pass_on(line: str, phase: Phase) -> None:
    try:
        event = json.loads(line)
        phase(str(event["phase"]), int(event["done"]), int(event["total"]))
    except (ValueError, KeyError, TypeError):
        return  # a library printed something of its own


def _crash_text(name: str, status: int, log: Path) -> str:
    if status < 0:
        try:
            how = f"was ended by {signal.Signals(-status).name}"
        except ValueError:
            how = f"was ended by signal {-status}"
        if -status == signal.SIGKILL:
            how += " (often the system, for want of memory)"
    else:
        how = f"exited with {status}" if status else "left no answer"
    lines = [
        line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line
    ]
    last = " | ".join(lines[-_LINES_SHOWN:]) or "nothing"
    return (
        f"stage '{name}': its process {how}. Its last words: {last}. The whole log: "
        f"{log.name}. Stages that are finished are kept; start the same command again to go on."
    )
