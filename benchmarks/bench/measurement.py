"""What a measurement leaves behind: the JSON of ``visionllm-edge bench``, as frozen dataclasses.

Times are in ms, sizes in bytes, rates in requests a second, energy in joules. Measured and
estimated values never share a field: what is counted from a graph says so in its name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from visionllm_edge.benchmarks.bench.statistics import Stats
from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.typed_json import FieldError, json_from_object, object_from_json

__all__ = [
    "SCHEMA",
    "BundleFacts",
    "Cold",
    "DeviceState",
    "Energy",
    "Environment",
    "Jitter",
    "LayerTime",
    "LlmTimes",
    "Result",
    "Roofline",
    "Sample",
    "Span",
    "StageTimes",
    "TaskTimes",
    "Throughput",
    "Workload",
    "read_result",
    "write_result",
]

SCHEMA = "visionllm-edge-bench/1"


@dataclass(frozen=True)
class BundleFacts:
    """Which bundle was measured.

    Attributes:
        name: of the manifest.
        fingerprint: SHA-256 of the manifest, which names every file's own.
        target: of the manifest.
        precision: of each stage.
        file_bytes: of all files.
    """

    name: str
    fingerprint: str
    target: str
    precision: Mapping[str, str]
    file_bytes: int


@dataclass(frozen=True)
class DeviceState:
    """What the machine does of its own accord; None where it does not say.

    Attributes:
        clocks_mhz: by name of the clock domain.
        temperatures_c: by name of the sensor.
        power_mode: governor, nvpmodel mode or the like.
        throttled: whether the machine says that it slowed down, and why.
    """

    clocks_mhz: Mapping[str, float] = field(default_factory=dict)
    temperatures_c: Mapping[str, float] = field(default_factory=dict)
    power_mode: str | None = None
    throttled: str | None = None


@dataclass(frozen=True)
class Environment:
    """Where and how it was measured.

    Attributes:
        device: processor or GPU.
        cores: of the processor.
        threads: asked for; None leaves it to the backend.
        overlap: whether stages were asked to run beside the language model; None leaves it to
            the runtime.
        versions: of Python and of the packages that matter.
        timer: what the time of a request includes.
        commit: of the source tree, if there is one.
        before: state of the machine before the first sample.
        after: state behind the last one.
        foreign_cores: cores that other processes kept busy meanwhile.
    """

    device: str
    cores: int
    versions: Mapping[str, str]
    timer: str
    before: DeviceState
    after: DeviceState
    threads: int | None = None
    overlap: bool | None = None
    commit: str | None = None
    foreign_cores: float | None = None


@dataclass(frozen=True)
class Workload:
    """What was asked.

    Attributes:
        image_px: height and width of the pictures.
        classes: names asked for in detect and segment.
        output_tokens: words of every answer, exactly.
        seed: of the pictures.
        interval: stop once the median's interval is within this share of it.
        limit_s: stop after so long all the same.
        rate: requests a second of the jitter run; None without one.
        concurrency: processes of the throughput runs.
    """

    image_px: tuple[int, int]
    classes: tuple[str, ...]
    output_tokens: int
    seed: int
    interval: float
    limit_s: float
    rate: float | None = None
    concurrency: tuple[int, ...] = ()


@dataclass(frozen=True)
class Span:
    """One run of a stage inside a request.

    Attributes:
        stage: its name.
        start_ms: since the request began.
        host_ms: wall time of the call.
        device_ms: of the device alone, where the device says so.
        copy_ms: of its copies to and from the device, where the device says so.
        rows: new positions of a decoder step, pictures or regions of a batch.
        thread: 0 is the thread that asked.
    """

    stage: str
    start_ms: float
    host_ms: float
    device_ms: float | None = None
    copy_ms: float | None = None
    rows: int = 1
    thread: int = 0


@dataclass(frozen=True)
class Sample:
    """One request: wall time and the stages that ran; what is left is the host's own work."""

    total_ms: float
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class TaskTimes:
    """One task.

    Attributes:
        name: of the task.
        stats: of the whole request.
        samples: in order.
        first_ms: until the first token, box or picture.
        stopped_by: ``interval`` or ``limit``.
    """

    name: str
    stats: Stats
    samples: tuple[Sample, ...]
    stopped_by: str
    first_ms: Stats | None = None


@dataclass(frozen=True)
class Roofline:
    """A stage against its own limit.

    Attributes:
        counted_bytes: that one run must move, from the graph.
        counted_operations: of one run, from the graph; a multiply-add is two.
        limit_ms: the longer of bytes over bandwidth and operations over rate (estimated).
        bound: ``memory`` or ``compute``.
        share: ``limit_ms`` over the measured median.
    """

    counted_bytes: int
    counted_operations: int
    limit_ms: float
    bound: str
    share: float


@dataclass(frozen=True)
class LayerTime:
    """The nodes of one module and operator under the profiler.

    Attributes:
        op: operator.
        total_ms: per request.
        module: the source model's module that it came from; None where the graph does not say.
    """

    op: str
    total_ms: float
    module: str | None = None


@dataclass(frozen=True)
class StageTimes:
    """One stage over all requests of a task.

    Attributes:
        task: whose requests.
        stage: its name.
        stats: of one run, as the host sees it; the host need not wait for a device.
        runs_per_request: how often a request runs it.
        share: of the request's time; what ran beside a stage of the asking thread is not counted,
            so shares add up to 1 at most.
        beside: of the request's time, what ran beside others and is not in `share`, if any did.
        peak_bytes: memory while it runs, where it was measured.
        roofline: against its own limit, where it was counted.
        layers: under the profiler, the longest first.
        device_ms: of one run on the device, where the device says so; what the device does for
            other stages at the same time makes it longer.
        copy_ms: of one run's copies to and from the device, where the device says so.
    """

    task: str
    stage: str
    stats: Stats
    runs_per_request: float
    share: float
    beside: float | None = None
    peak_bytes: int | None = None
    roofline: Roofline | None = None
    layers: tuple[LayerTime, ...] = ()
    device_ms: Stats | None = None
    copy_ms: Stats | None = None


@dataclass(frozen=True)
class LlmTimes:
    """The words of one task.

    Attributes:
        task: whose answers.
        prompt_rows: positions of the prompt.
        tokens: of an answer.
        first_token_ms: from the request to the first token.
        inter_token_ms: between one token and the next.
        tokens_per_s: of the tokens behind the first.
    """

    task: str
    prompt_rows: int
    tokens: int
    first_token_ms: Stats
    inter_token_ms: Stats
    tokens_per_s: float


@dataclass(frozen=True)
class Cold:
    """The first request of a process: loading, then the first answer of each task."""

    load_ms: float
    first_ms: Mapping[str, float]


@dataclass(frozen=True)
class Jitter:
    """Requests at a fixed rate.

    Attributes:
        task: what was asked.
        rate: requests a second.
        latency_ms: from the moment a request was due to its answer.
        late: share of the requests that began more than half a period late.
        skipped: requests whose moment passed while an earlier one ran.
    """

    task: str
    rate: float
    latency_ms: Stats
    late: float
    skipped: int


@dataclass(frozen=True)
class Throughput:
    """Several processes at once."""

    task: str
    processes: int
    requests_per_s: float
    latency_ms: Stats


@dataclass(frozen=True)
class Energy:
    """Energy, with the rail it was read from; both None, and `source` why, where it was not.

    Attributes:
        source: the rail's name, or why there is none.
        per_request_j: by task.
        per_token_j: of the language model.
        idle_w: before the first request.
    """

    source: str
    per_request_j: Mapping[str, float] = field(default_factory=dict)
    per_token_j: float | None = None
    idle_w: float | None = None


@dataclass(frozen=True)
class Result:
    """A whole measurement.

    Attributes:
        created: ISO 8601, UTC.
        bundle: what was measured.
        environment: where.
        workload: what was asked.
        tasks: one entry per task.
        stages: one entry per task and stage.
        peak_bytes: of the process.
        llm: answers in words.
        cold: the first request, if it was measured.
        jitter: at a fixed rate, if asked for.
        throughput: by number of processes, if asked for.
        energy: or why there is none.
        accuracy: of the same bundle: metric by task.
        warnings: what a reader must know.
        session: results with the same one were measured in turns, request by request: sample i of
            one belongs to sample i of the other.
    """

    created: str
    bundle: BundleFacts
    environment: Environment
    workload: Workload
    tasks: tuple[TaskTimes, ...]
    stages: tuple[StageTimes, ...]
    peak_bytes: int
    energy: Energy
    llm: tuple[LlmTimes, ...] = ()
    cold: Cold | None = None
    jitter: Jitter | None = None
    throughput: tuple[Throughput, ...] = ()
    accuracy: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    session: str | None = None

    def to_dict(self) -> dict[str, object]:
        """Plain JSON types, the schema's name first."""
        return {"schema": SCHEMA, **cast(dict[str, object], json_from_object(self))}

    @classmethod
    def from_dict(cls, data: object) -> Result:
        """Read and check.

        Raises:
            InputError: not a result of this schema.
        """
        content = dict(data) if isinstance(data, dict) else {}
        schema = content.pop("schema", None)
        if schema != SCHEMA:
            raise InputError(
                f"bench result: expected schema {SCHEMA!r}, got {schema!r}. "
                "Give a file that `visionllm-edge bench --out` wrote."
            )
        try:
            return object_from_json(cls, content)
        except FieldError as error:
            raise InputError(f"bench result: {error}") from error


def write_result(path: Path, result: Result) -> None:
    """Write the JSON; the folder is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result.to_dict()) + "\n", encoding="utf-8")


def read_result(path: Path) -> Result:
    """Read the JSON.

    Raises:
        InputError: no such file, or not a result.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"bench result '{path}': {error.strerror}. Check the path.") from error
    except ValueError as error:
        raise InputError(
            f"bench result '{path}': expected JSON, got something else ({error}). "
            "Give a file that `visionllm-edge bench --out` wrote."
        ) from error
    return Result.from_dict(data)
