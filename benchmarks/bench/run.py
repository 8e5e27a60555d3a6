"""``visionllm-edge bench BUNDLE``: the whole measurement, in order."""

from __future__ import annotations

import datetime
import hashlib
import importlib.util
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from visionllm_edge.benchmarks.bench.device_state import read_state, require_same_state
from visionllm_edge.benchmarks.bench.energy import EnergyMeter, find_meter
from visionllm_edge.benchmarks.bench.limits import measure_limits, roofline
from visionllm_edge.benchmarks.bench.load_patterns import at_rate, cold_start, throughput
from visionllm_edge.benchmarks.bench.measurement import (
    BundleFacts,
    DeviceState,
    Energy,
    Environment,
    LlmTimes,
    Result,
    Span,
    StageTimes,
    TaskTimes,
    Throughput,
    Workload,
)
from visionllm_edge.benchmarks.bench.overlap import beside_ms
from visionllm_edge.benchmarks.bench.process_memory import peak_bytes, peak_since_reset, reset_peak
from visionllm_edge.benchmarks.bench.profile import profile_task
from visionllm_edge.benchmarks.bench.requester import Requester
from visionllm_edge.benchmarks.bench.sampling import (
    Budget,
    Timed,
    require_percentiles,
    sample_until,
)
from visionllm_edge.benchmarks.bench.stage_memory import stage_peaks
from visionllm_edge.benchmarks.bench.statistics import Stats, summarize
from visionllm_edge.benchmarks.bench.tasks import BenchTask, tasks_of
from visionllm_edge.benchmarks.environment import describe_environment
from visionllm_edge.benchmarks.foreign_load import ForeignLoad
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.manifest import MANIFEST_NAME, VISIONLLM_V2, Manifest

__all__ = [
    "Accuracy",
    "BenchOptions",
    "Note",
    "bench_bundle",
    "bundle_facts",
    "environment_of",
    "now",
    "stage_times",
    "task_times",
    "warnings_of",
]

Note = Callable[[str], None]
Accuracy = Mapping[str, Mapping[str, float]]
"""Metrics by task."""

_PACKAGES = ("visionllm-edge", "onnxruntime", "tensorrt", "tensorrt-rtx", "numpy")
_TIMER = (
    "wall clock around one call of the Python API: picture as an array in, typed result out "
    "(resizing, tokenising, copies and post-processing included, reading a file not)"
)
_PATTERN_S = 5.0
_LAYERS_KEPT = 60
# Other work on the cores: worth a word, and worth a refusal to compare.
_BUSY_CORES = 0.1
_JITTERY_CV = 0.1


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Attributes:
        tasks: names; empty takes all that the bundle has.
        budget: samples per task.
        threads: of the backend.
        overlap: of the runtime, see `LoadOptions`.
        cold: also the first request of a new process.
        rate: also at so many requests a second.
        concurrency: also with so many processes at once.
        accuracy_pictures: also how right the answers are, on so many pictures; 0 leaves it out.
        profile: also what every layer costs, and what each stage would need at least.
    """

    tasks: tuple[str, ...] = ()
    budget: Budget = field(default_factory=Budget)
    threads: int | None = None
    overlap: bool | None = None
    cold: bool = True
    rate: float | None = None
    concurrency: tuple[int, ...] = ()
    accuracy_pictures: int = 0
    profile: bool = True


def bench_bundle(
    path: Path,
    workload: Workload,
    options: BenchOptions,
    *,
    accuracy: Callable[[Path, int], Accuracy] | None = None,
    note: Note = lambda text: None,
) -> Result:
    """Measure a bundle.

    Args:
        path: the bundle.
        workload: what is asked.
        options: what to measure.
        accuracy: judges the same bundle on so many pictures.
        note: gets a line per step.

    Raises:
        BundleError, BackendError, MemoryLimitError: it cannot be loaded or run.
        InputError: a task that it does not have, or a language model alone.
        MeasurementError: too few samples, or the machine changed meanwhile.
    """
    bundle = Bundle.open(path, verify=False)
    manifest = bundle.manifest
    if manifest.family != VISIONLLM_V2:
        raise InputError(
            f"bench '{path.name}': expected a bundle of VisionLLM v2, got a language model alone. "
            "Use `visionllm-edge bench llm`."
        )
    tasks = tasks_of(manifest.model, options.tasks)
    before = read_state()
    with ForeignLoad() as foreign:
        cold = None
        if options.cold:
            note(f"first requests of new processes: {', '.join(task.name for task in tasks)}")
            names = [task.name for task in tasks]
            cold = cold_start(
                path, names, workload, threads=options.threads, overlap=options.overlap
            )
        note("load the bundle")
        reset_peak()
        requester = Requester(path, workload, threads=options.threads, overlap=options.overlap)
        meter = find_meter()
        timed, energy = _time_tasks(requester, tasks, options, meter, note)
        peak = peak_since_reset() or peak_bytes()
        peaks = stage_peaks(requester, tasks)
        jitter = None
        if options.rate is not None:
            note(f"{tasks[0].name} at {options.rate:g} requests a second")
            ask = requester.requests(tasks[0])
            jitter = at_rate(ask, tasks[0].name, options.rate, seconds=_PATTERN_S)
    profiled = _profiled(path, tasks, workload, options, note)
    many = _concurrent(path, tasks, workload, options, note)
    after = read_state()
    require_same_state(before, after)
    judged: Accuracy = {}
    if options.accuracy_pictures and accuracy is not None:
        note(f"how right the answers are, on {options.accuracy_pictures} pictures")
        judged = accuracy(path, options.accuracy_pictures)
    results = tuple(times for times, _, _ in timed)
    return Result(
        created=now(),
        bundle=bundle_facts(bundle),
        environment=environment_of(options, before, after, foreign.cores),
        workload=workload,
        tasks=results,
        stages=tuple(
            profiled(stage)
            for times, _, requests in timed
            for stage in stage_times(times, requests, peaks)
        ),
        peak_bytes=peak,
        energy=energy,
        llm=tuple(llm for _, llm, _ in timed if llm is not None),
        cold=cold,
        jitter=jitter,
        throughput=many,
        accuracy=judged,
        warnings=warnings_of(results, foreign.cores),
    )


def now() -> str:
    """ISO 8601, UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def bundle_facts(bundle: Bundle) -> BundleFacts:
    """What the result says about a bundle."""
    manifest = bundle.manifest
    digest = hashlib.sha256((bundle.root / MANIFEST_NAME).read_bytes()).hexdigest()
    return BundleFacts(
        name=manifest.name,
        fingerprint=f"sha256:{digest}",
        target=manifest.target.name,
        precision={name: _precision(manifest, name) for name in manifest.stages},
        file_bytes=sum(entry.size for entry in manifest.files.values()),
    )


def _precision(manifest: Manifest, stage: str) -> str:
    if stage == "llm_decoder":
        return manifest.model.llm.precision
    return str(manifest.stages[stage].parity.get("precision", manifest.target.precision))


def _time_tasks(
    requester: Requester,
    tasks: Sequence[BenchTask],
    options: BenchOptions,
    meter: EnergyMeter | str,
    note: Note,
) -> tuple[list[tuple[TaskTimes, LlmTimes | None, list[Timed]]], Energy]:
    out = []
    per_request: dict[str, float] = {}
    per_token = None
    for task in tasks:
        request = requester.requests(task)
        if isinstance(meter, str):
            samples, stopped = sample_until(request, options.budget)
        else:
            with meter:
                begin = meter.joules()
                samples, stopped = sample_until(request, options.budget)
                # The warm-up's requests cost the same as the others.
                count = len(samples) + options.budget.warmup
                per_request[task.name] = (meter.joules() - begin) / count
        times, llm = task_times(task, samples, stopped)
        if task.words and task.name in per_request:
            per_token = per_request[task.name] / requester.workload.output_tokens
        require_percentiles(task.name, times.stats, options.budget.percentiles)
        stats = times.stats
        note(
            f"{task.name}: {stats.p50:.2f} ms ({stats.low:.2f} to {stats.high:.2f}), "
            f"{stats.count} requests, stopped by the {stopped}"
        )
        out.append((times, llm, samples))
    source = meter if isinstance(meter, str) else meter.name
    return out, Energy(source, per_request, per_token)


def task_times(
    task: BenchTask, samples: Sequence[Timed], stopped: str
) -> tuple[TaskTimes, LlmTimes | None]:
    """What the samples of a task say, and what its words say if they have times."""
    first = [one.first_ms for one in samples if one.first_ms is not None]
    times = TaskTimes(
        name=task.name,
        stats=summarize([one.total_ms for one in samples]),
        samples=tuple(one.sample() for one in samples),
        stopped_by=stopped,
        first_ms=summarize(first) if first else None,
    )
    if not task.words or not all(len(one.tokens_ms) > 1 for one in samples):
        return times, None
    between = [(one.tokens_ms[-1] - one.tokens_ms[0]) / (len(one.tokens_ms) - 1) for one in samples]
    prompt = [
        sum(span.rows for span in one.spans if span.stage == "llm_decoder" and span.rows > 1)
        for one in samples
    ]
    inter = summarize(between)
    return times, LlmTimes(
        task=task.name,
        prompt_rows=max(prompt),
        tokens=len(samples[0].tokens_ms),
        first_token_ms=summarize([one.tokens_ms[0] for one in samples]),
        inter_token_ms=inter,
        tokens_per_s=1000 / inter.p50,
    )


def stage_times(
    times: TaskTimes, requests: Sequence[Timed], peaks: Mapping[tuple[str, str], int]
) -> list[StageTimes]:
    """One entry per stage of the task, the longest first."""
    spans: dict[str, list[Span]] = {}
    beside: dict[str, float] = {}
    for one in requests:
        for span, shared in zip(one.spans, beside_ms(one.spans), strict=True):
            spans.setdefault(span.stage, []).append(span)
            beside[span.stage] = beside.get(span.stage, 0.0) + shared
    whole = sum(one.total_ms for one in requests)
    entries = [
        StageTimes(
            task=times.name,
            stage=stage,
            stats=summarize([span.host_ms for span in runs]),
            runs_per_request=len(runs) / len(requests),
            share=(sum(span.host_ms for span in runs) - beside[stage]) / whole,
            beside=beside[stage] / whole if beside[stage] else None,
            peak_bytes=peaks.get((times.name, stage)),
            device_ms=_where_known([span.device_ms for span in runs]),
            copy_ms=_where_known([span.copy_ms for span in runs]),
        )
        for stage, runs in spans.items()
    ]
    return sorted(entries, key=lambda entry: -entry.share)


def _where_known(times: Sequence[float | None]) -> Stats | None:
    """Of the runs that were timed on a device; None without any."""
    known = [time for time in times if time is not None]
    return summarize(known) if known else None


def _profiled(
    path: Path, tasks: Sequence[BenchTask], workload: Workload, options: BenchOptions, note: Note
) -> Callable[[StageTimes], StageTimes]:
    """Adds layers and limits to a stage's times, where they were asked for."""
    if not options.profile:
        return lambda entry: entry
    if importlib.util.find_spec("onnx_ir") is None:
        note("layers and limits: not available without the extra 'export'")
        return lambda entry: entry
    note("this machine's limits, and the layers of every stage")
    limits = measure_limits(options.threads)
    profiles = {
        task.name: profile_task(path, task, workload, threads=options.threads) for task in tasks
    }

    def add(entry: StageTimes) -> StageTimes:
        profile = profiles[entry.task].get(entry.stage)
        if profile is None:
            return entry
        whole = entry.stats.mean * entry.runs_per_request
        return replace(
            entry,
            layers=profile.layers[:_LAYERS_KEPT],
            roofline=roofline(profile, whole, limits),
        )

    return add


def _concurrent(
    path: Path, tasks: Sequence[BenchTask], workload: Workload, options: BenchOptions, note: Note
) -> tuple[Throughput, ...]:
    out = []
    for count in options.concurrency:
        note(f"{tasks[0].name} by {count} processes at once")
        out.append(
            throughput(
                path,
                tasks[0].name,
                workload,
                count,
                threads=options.threads,
                overlap=options.overlap,
                seconds=_PATTERN_S,
            )
        )
    return tuple(out)


def environment_of(
    options: BenchOptions, before: DeviceState, after: DeviceState, foreign: float
) -> Environment:
    """Where it was measured."""
    facts = describe_environment(_PACKAGES)
    versions = facts["versions"]
    assert isinstance(versions, dict)
    return Environment(
        device=str(facts["processor"]),
        cores=os.cpu_count() or 1,
        versions={"python": str(facts["python"]), **versions},
        timer=_TIMER,
        before=before,
        after=after,
        threads=options.threads,
        overlap=options.overlap,
        commit=_commit(),
        foreign_cores=round(foreign, 3),
    )


def _commit() -> str | None:
    """Of the source tree that this file lies in; None for an installed package."""
    try:
        out = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return out.stdout.strip() or None


def warnings_of(tasks: Sequence[TaskTimes], foreign: float) -> tuple[str, ...]:
    """What a reader of these times must know."""
    out = []
    if foreign > _BUSY_CORES:
        out.append(
            f"Other work kept {foreign:.1f} cores busy meanwhile: measure again on a quiet machine."
        )
    vague = [task for task in tasks if task.stopped_by == "limit"]
    if vague:
        widths = ", ".join(f"{task.name} {task.stats.half_width:.1%}" for task in vague)
        out.append(f"Medians are known only to plus or minus: {widths}. A longer --limit helps.")
    jittery = [task for task in tasks if task.stats.cv > _JITTERY_CV]
    if jittery:
        spread = ", ".join(f"{task.name} {task.stats.cv:.0%}" for task in jittery)
        out.append(f"Times vary a lot (standard deviation over mean): {spread}.")
    return tuple(out)
