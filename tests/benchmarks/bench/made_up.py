"""A result without a machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from visionllm_edge.benchmarks.bench.measurement import (
    BundleFacts,
    Cold,
    DeviceState,
    Energy,
    Environment,
    Jitter,
    LayerTime,
    LlmTimes,
    Result,
    Roofline,
    Sample,
    Span,
    StageTimes,
    TaskTimes,
    Throughput,
    Workload,
)
from visionllm_edge.benchmarks.bench.statistics import summarize

__all__ = ["STAGES", "made_up_result", "noisy"]

STAGES = {"vision_encoder": 5.0, "llm_decoder": 9.0, "det_encoder": 20.0}


def noisy(
    rng: np.random.Generator, count: int, *, slower: float = 1.0, moods: Sequence[float] = ()
) -> list[Sample]:
    """Requests whose noise drifts as a busy machine's does; `slower` is det_encoder's factor."""
    samples = []
    for index in range(count):
        mood = moods[index] if len(moods) else 1.0
        start, spans = 0.5, []
        for stage, middle in STAGES.items():
            time = middle * mood * float(np.exp(rng.normal(0, 0.03)))
            time *= slower if stage == "det_encoder" else 1.0
            spans.append(Span(stage, start, time, rows=3 if stage == "llm_decoder" else 1))
            start += time
        samples.append(Sample(start + 0.4 * mood, tuple(spans)))
    return samples


def made_up_result(
    samples: Sequence[Sample] | None = None,
    *,
    session: str | None = None,
    name: str = "detect",
    change: Callable[[Environment], Environment] = lambda environment: environment,
) -> Result:
    """A whole result with these samples."""
    samples = samples or noisy(np.random.default_rng(0), 60)
    stats = summarize([sample.total_ms for sample in samples])
    stages = tuple(
        StageTimes(
            task=name,
            stage=stage,
            stats=summarize([s.host_ms for one in samples for s in one.spans if s.stage == stage]),
            runs_per_request=1.0,
            share=0.3,
            peak_bytes=1_000_000,
            roofline=Roofline(1000 * (i + 1), 4000, 1.0, "memory", 0.2),
            layers=(LayerTime("MatMul", 1.5, "model.layers.0.mlp<x>"), LayerTime("Add", 0.1)),
        )
        for i, stage in enumerate(STAGES)
    )
    state = DeviceState({"cpu0 limit": 2400.0}, {"cpu": 50.0}, "governor performance")
    return Result(
        created="2026-01-01T00:00:00+00:00",
        bundle=BundleFacts("tiny & co", "sha256:0", "cpu", {"det_encoder": "fp32"}, 1000),
        environment=change(
            Environment("A processor", 2, {"python": "3.11"}, "wall clock", state, state)
        ),
        workload=Workload((128, 128), ("circle",), 8, 0, 0.02, 20.0),
        tasks=(TaskTimes(name, stats, tuple(samples), "limit", stats),),
        stages=stages,
        peak_bytes=123_000_000,
        energy=Energy("not available: made up"),
        llm=(LlmTimes(name, 90, 8, stats, stats, 1000 / stats.p50),),
        cold=Cold(500.0, {name: 60.0}),
        jitter=Jitter(name, 30.0, stats, 0.1, 2),
        throughput=(Throughput(name, 2, 33.0, stats),),
        accuracy={name: {"box_ap": 0.85}},
        warnings=("A warning.",),
        session=session,
    )
