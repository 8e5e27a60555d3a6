"""A process of its own that asks a bundle: the first request after a start, or many at once.

Reads one JSON object from standard input: ``bundle``, ``task``, ``threads``, ``overlap``,
``workload`` and ``seconds`` (0: one request only). Prints ``ready`` when loaded, waits for a line,
and prints one JSON object.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from visionllm_edge.benchmarks.bench.measurement import Workload
from visionllm_edge.runtime.errors import BackendError
from visionllm_edge.runtime.typed_json import json_from_object, object_from_json

__all__ = ["Worker", "start_workers"]

_READY = "ready"
_LAST_LINES = 8


class Worker:
    """The other end of one process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Take a started process."""
        self._process = process

    def wait_ready(self) -> None:
        """Until the bundle is loaded.

        Raises:
            BackendError: the process ended instead.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if line != _READY:
            raise self._failed()

    def go(self) -> None:
        """Let it begin."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def result(self) -> dict[str, Any]:
        """What it measured.

        Raises:
            BackendError: the process failed.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        self._process.wait()
        if self._process.returncode != 0 or not line:
            raise self._failed()
        return cast(dict[str, Any], json.loads(line))

    def _failed(self) -> BackendError:
        self._process.wait()
        assert self._process.stderr is not None
        last = "\n".join(self._process.stderr.read().strip().splitlines()[-_LAST_LINES:])
        return BackendError(
            f"bench: a process that asks the bundle ended with {self._process.returncode}:\n{last}"
        )


@contextmanager
def start_workers(
    count: int,
    bundle: Path,
    task: str,
    workload: Workload,
    *,
    threads: int | None,
    seconds: float,
    overlap: bool | None = None,
) -> Iterator[list[Worker]]:
    """Processes that ask the same task; they are ended with the block."""
    order = json.dumps(
        {
            "bundle": str(bundle),
            "task": task,
            "threads": threads,
            "overlap": overlap,
            "workload": json_from_object(workload),
            "seconds": seconds,
        }
    )
    processes = []
    try:
        for _ in range(count):
            process = subprocess.Popen(
                [sys.executable, "-m", "visionllm_edge.benchmarks.bench.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ},
            )
            processes.append(process)
            assert process.stdin is not None
            process.stdin.write(order + "\n")
            process.stdin.flush()
        yield [Worker(process) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


def main() -> None:
    """The process; see the module."""
    from visionllm_edge.benchmarks.bench.requester import Requester
    from visionllm_edge.benchmarks.bench.tasks import TASKS

    order = json.loads(sys.stdin.readline())
    workload = object_from_json(Workload, order["workload"])
    seconds = float(order["seconds"])
    requester = Requester(
        Path(order["bundle"]), workload, threads=order["threads"], overlap=order["overlap"]
    )
    ask = requester.requests(next(task for task in TASKS if task.name == order["task"]))
    if seconds:
        ask()  # stages are loaded when first asked for
    print(_READY, flush=True)
    sys.stdin.readline()
    end = time.monotonic() + seconds
    times = [ask().total_ms]
    while time.monotonic() < end:
        times.append(ask().total_ms)
    print(json.dumps({"load_ms": requester.load_ms, "times_ms": times}), flush=True)


if __name__ == "__main__":
    main()
