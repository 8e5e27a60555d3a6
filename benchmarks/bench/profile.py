"""What every node of a stage costs, by ONNX Runtime's profiler, and what it must do at least.

The profiled run is a run of its own: the profiler slows every node, so its times say where a
stage's time goes and not how long it is. Operations and bytes are counted from the shapes that the
profiler wrote down, of the graph that ONNX Runtime really runs.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visionllm_edge.benchmarks.bench.measurement import LayerTime, Workload
from visionllm_edge.benchmarks.bench.tasks import BenchTask, pictures
from visionllm_edge.runtime.backends import StageOptions, StageRunner
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.model import VisionLLM
from visionllm_edge.runtime.pipelines.loading import BundleStages, load_pipeline
from visionllm_edge.runtime.pipelines.stages import Stages

__all__ = ["StageProfile", "count_operations", "module_of", "profile_task", "read_profile"]

_WARMUP = 2
_REQUESTS = 5
_KERNEL = "_kernel_time"
# A multiply-add is two operations.
_PRODUCTS = frozenset({"MatMul", "FusedMatMul", "Gemm", "FusedGemm"})
_CONVOLUTIONS = frozenset({"Conv", "FusedConv", "NhwcFusedConv"})
_QUANTIZED = frozenset({"QuantizedLinear", "MatMulNBits"})
# These move numbers and compute none.
_MOVES = frozenset(
    {
        "Cast", "Concat", "Expand", "Flatten", "Gather", "GatherND", "Identity", "Pad", "Reshape",
        "ScatterND", "Shape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip

Shape = Sequence[int]


@dataclass(frozen=True)
class StageProfile:
    """One stage over the profiled requests; numbers are per request.

    Attributes:
        layers: time of each module's nodes by operator, the longest first.
        operations: counted, by kind: ``float`` and ``int8``.
        weight_bytes: of all weights, once per run.
        uncounted: operators whose work depends on values and is left out.
    """

    layers: tuple[LayerTime, ...]
    operations: Mapping[str, int]
    weight_bytes: int
    uncounted: tuple[str, ...]


def profile_task(
    path: Path, task: BenchTask, workload: Workload, *, threads: int | None
) -> dict[str, StageProfile]:
    """Profile the stages that a task runs; empty for a backend that has no profiler of nodes.

    Raises:
        BundleError, BackendError: the bundle cannot be loaded or run.
    """
    bundle = Bundle.open(path, verify=False)
    with tempfile.TemporaryDirectory(prefix="visionllm-edge-") as folder:
        stages = _Watched(
            BundleStages(bundle, StageOptions(threads=threads, profile=f"{folder}/stage"))
        )
        model = VisionLLM(load_pipeline(bundle, stages=stages))
        images = pictures(workload)
        for index in range(_WARMUP + _REQUESTS):
            if index == _WARMUP:
                stages.mark()
            task.ask(model, next(images), workload, _ignore)
        out = {}
        for name, (runner, runs_before, bucket) in stages.runners().items():
            end: Callable[[], Path] | None = getattr(runner, "end_profiling", None)
            if end is not None:
                events = json.loads(end().read_text(encoding="utf-8"))
                graph = bundle.stage_model(name, bucket)
                out[name] = read_profile(
                    events,
                    skip_runs=runs_before,
                    requests=_REQUESTS,
                    weight_bytes=_weight_bytes(graph),
                )
        return out


def read_profile(
    events: Sequence[Mapping[str, Any]], *, skip_runs: int, requests: int, weight_bytes: int
) -> StageProfile:
    """What the events of one session say.

    Args:
        events: of ONNX Runtime's profile.
        skip_runs: runs of the session before the ones that count.
        requests: that the other runs belong to.
        weight_bytes: of the stage's graph, which every run reads.
    """
    runs = sorted(
        (event["ts"], event["ts"] + event["dur"])
        for event in events
        if event.get("cat") == "Session" and event["name"] == "model_run"
    )[skip_runs:]
    begin = runs[0][0] if runs else math.inf
    times: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    operations: defaultdict[str, int] = defaultdict(int)
    uncounted = set()
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith(_KERNEL) or event["ts"] < begin:
            continue
        arguments = event["args"]
        op = str(arguments["op_name"])
        node = name.removesuffix(_KERNEL)
        times[module_of(node), op].append(event["dur"] / 1000)
        inputs, outputs = (
            _shapes(arguments.get(f"{end}_type_shape")) for end in ("input", "output")
        )
        counted = count_operations(op, inputs, outputs)
        if counted is None:
            uncounted.add(op)
        else:
            operations["int8" if op in _QUANTIZED else "float"] += counted
    layers = [
        LayerTime(op, sum(durations) / requests, module or None)
        for (module, op), durations in times.items()
    ]
    return StageProfile(
        layers=tuple(sorted(layers, key=lambda layer: -layer.total_ms)),
        operations={kind: count // requests for kind, count in operations.items()},
        weight_bytes=weight_bytes * max(1, round(len(runs) / requests)),
        uncounted=tuple(sorted(uncounted)),
    )


def count_operations(op: str, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int | None:
    """Operations of one run of a node; None where they depend on values.

    Products count multiply and add; everything else one operation per number that comes out.
    Attention over a cache reads as many rows as are filled, which no shape tells.
    """
    out = math.prod(outputs[0]) if outputs else 0
    # The weights' own shape is not there once the backend has packed them.
    if op in _PRODUCTS and inputs:
        return 2 * out * (inputs[0][-1] if inputs[0] else 1)
    if op in _CONVOLUTIONS and len(inputs) > 1:
        return 2 * out * math.prod(inputs[1][1:])
    if op in _QUANTIZED:
        return 2 * math.prod(inputs[0]) * outputs[0][-1]
    if op in ("CachedAttention", "GroupQueryAttention", "QuantizedCachedAttention"):
        return None
    if op in ("MultiHeadAttention", "Attention") and len(inputs) > 1 and len(inputs[0]) == 3:
        return 4 * math.prod(inputs[0]) * inputs[1][1]
    if op == "MultiScaleDeformableAttention":
        # Four corners, weighted twice, for each of the points of each head.
        return 2 * 5 * out * math.prod(inputs[-1][-2:])
    return 0 if op in _MOVES else out


def module_of(node_name: str) -> str:
    """The module in a node's name; empty where it names none.

    Nodes that a lowering or a backend made out of others often keep the name and add to it. Graphs
    that are built by hand name their nodes after the module alone.
    """
    module, slash, _ = node_name.partition("/")
    return module if slash or "." in module else ""


def _weight_bytes(graph: Path) -> int:
    """Of a stage's graph; nothing is read but its description."""
    import onnx_ir as ir

    return sum(
        value.const_value.nbytes
        for value in ir.load(graph).graph.initializers.values()
        if value.const_value is not None
    )


def _shapes(described: object) -> list[list[int]]:
    """Shapes out of ``[{"float": [1, 2]}, ...]``."""
    entries = described if isinstance(described, list) else []
    return [list(shape) for entry in entries for shape in entry.values()]


class _Watched:
    """Stages that count how often each has run."""

    def __init__(self, stages: Stages) -> None:
        self._stages = stages
        self._counts: dict[int, int] = {}
        self._runners: dict[str, StageRunner] = {}
        self._buckets: dict[str, tuple[int, int] | None] = {}
        self._before: dict[str, int] = {}

    def get(self, name: str, bucket: tuple[int, int] | None = None) -> StageRunner:
        runner = self._stages.get(name, bucket)
        self._runners[name], self._buckets[name] = runner, bucket
        return _Counted(runner, self._counts)

    def mark(self) -> None:
        """From here on runs count."""
        self._before = {n: self._counts.get(id(r), 0) for n, r in self._runners.items()}

    def runners(self) -> dict[str, tuple[StageRunner, int, tuple[int, int] | None]]:
        """Each stage's runner, its runs before the mark, and its bucket."""
        return {
            name: (runner, self._before.get(name, 0), self._buckets[name])
            for name, runner in self._runners.items()
        }


class _Counted:
    """Counts `run`, `run_kept` and `run_with_cache`; everything else goes to the runner."""

    def __init__(self, inner: StageRunner, counts: dict[int, int]) -> None:
        self._inner, self._counts = inner, counts

    def __getattr__(self, name: str) -> Any:
        if name.startswith("run"):
            self._counts[id(self._inner)] = self._counts.get(id(self._inner), 0) + 1
        return getattr(self._inner, name)


def _ignore(event: object) -> None:
    """Events of a profiled request."""
