"""What ran at the same time counts once, in the numbers and in the pictures."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from tests.benchmarks.bench.json_schema import errors
from tests.benchmarks.bench.made_up import made_up_result
from visionllm_edge.benchmarks.bench.measurement import (
    Result,
    Sample,
    Span,
    StageTimes,
    TaskTimes,
)
from visionllm_edge.benchmarks.bench.overlap import beside_ms
from visionllm_edge.benchmarks.bench.page import html_page
from visionllm_edge.benchmarks.bench.page.plots import gantt, stage_split
from visionllm_edge.benchmarks.bench.run import stage_times
from visionllm_edge.benchmarks.bench.sampling import Timed
from visionllm_edge.benchmarks.bench.schema import result_schema
from visionllm_edge.benchmarks.bench.statistics import summarize
from visionllm_edge.benchmarks.bench.tables import markdown_table, text_table

# The language model reads from 2 to 8 and writes from 8 to 9; the backbone starts beside the
# picture's encoder and goes on alone from 9 to 12.
CHAIN = (
    Span("vision_encoder", 0.0, 2.0),
    Span("det_backbone", 1.0, 11.0, thread=1),
    Span("llm_decoder", 2.0, 6.0, rows=90),
    Span("llm_decoder", 8.0, 1.0),
    Span("det_encoder", 12.0, 5.0),
)
SERIAL = tuple(Span(s.stage, s.start_ms, s.host_ms) for s in CHAIN if s.stage != "det_backbone")


def times_of(spans: tuple[Span, ...], total: float) -> tuple[TaskTimes, list[StageTimes]]:
    requests = [Timed(total, spans)] * 8
    samples = tuple(Sample(total, spans) for _ in requests)
    times = TaskTimes("detect", summarize([total] * 8), samples, "limit")
    return times, stage_times(times, requests, {})


def test_time_beside_an_earlier_thread_is_found() -> None:
    assert beside_ms(CHAIN) == [0.0, 8.0, 0.0, 0.0, 0.0]
    assert beside_ms(SERIAL) == [0.0] * 4
    assert beside_ms([]) == []


def test_three_threads_count_once() -> None:
    spans = [Span("a", 0, 4), Span("b", 2, 4, thread=1), Span("c", 1, 9, thread=2)]
    assert beside_ms(spans) == [0.0, 2.0, 5.0]
    counted = sum(span.host_ms for span in spans) - sum(beside_ms(spans))
    assert counted == 10.0, "from 0 to 10, without a hole"


@pytest.mark.parametrize("seed", range(5))
def test_shares_of_any_chain_add_up_to_the_time_that_some_stage_ran(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spans = []
    for thread in range(3):
        at = 0.0
        for name in range(6):
            at += rng.integers(0, 9)
            long = float(rng.integers(1, 9))
            spans.append(Span(str(name), at, long, thread=thread))
            at += long
    ticks = {t for s in spans for t in range(int(s.start_ms), int(s.start_ms + s.host_ms))}
    counted = sum(span.host_ms for span in spans) - sum(beside_ms(spans))
    assert counted == len(ticks)


def test_a_tasks_stages_take_no_more_than_its_time() -> None:
    _, entries = times_of(CHAIN, 18.0)
    by_name = {entry.stage: entry for entry in entries}
    assert sum(entry.share for entry in entries) == pytest.approx(17 / 18)
    backbone = by_name["det_backbone"]
    assert backbone.share == pytest.approx(3 / 18)
    assert backbone.beside == pytest.approx(8 / 18)
    assert backbone.stats.p50 == 11.0, "how long one run takes stays what it is"
    assert all(e.beside is None for e in entries if e is not backbone)
    _, serial = times_of(SERIAL, 18.0)
    assert all(entry.beside is None for entry in serial)
    assert by_name["llm_decoder"].share == next(e.share for e in serial if e.stage == "llm_decoder")


def test_the_report_says_what_overlapped() -> None:
    times, entries = times_of(CHAIN, 18.0)
    base = made_up_result()
    result = replace(base, tasks=(times,), stages=tuple(entries), llm=())
    assert "beside others" in text_table(result) and "44%" in text_table(result)
    assert "beside others" not in text_table(base)
    names = list(dict.fromkeys(span.stage for span in CHAIN))
    picture = gantt(times, names)
    assert "one request of 18.00 ms, 8.00 ms of it with two stages at once" in picture
    assert "det_backbone: 11.000 ms from 1.000 ms, on a thread of its own" in picture
    serial, _ = times_of(SERIAL, 18.0)
    assert "at once" not in gantt(serial, names) and "of its own" not in gantt(serial, names)
    split = stage_split(result, names)
    assert "and 8.00 ms beside other stages" in split
    bars = [float(found) for found in re.findall(r": ([\d.]+)%, ", split)]
    assert sum(bars) == pytest.approx(100, abs=0.3), "a bar is as long as its task"


def test_what_overlapped_and_what_the_device_did_are_both_told() -> None:
    chain = tuple(
        replace(span, device_ms=9.0, copy_ms=0.25) if span.thread else span for span in CHAIN
    )
    times, entries = times_of(chain, 18.0)
    backbone = next(entry for entry in entries if entry.stage == "det_backbone")
    assert backbone.device_ms is not None and backbone.device_ms.p50 == 9.0
    # The device's times change nothing of the host's.
    assert backbone.share == pytest.approx(3 / 18)
    assert backbone.beside == pytest.approx(8 / 18)
    result = replace(made_up_result(), tasks=(times,), stages=tuple(entries), llm=())
    lines = markdown_table(result).splitlines()
    head, row = (
        [cell.strip() for cell in line.split("|")[2:8]]
        for line in lines
        if line.startswith(("| stage ", "| detect: det_backbone "))
    )
    assert dict(zip(head, row, strict=True)) == {
        "host p50 ms": "11.000", "device p50 ms": "9.000", "copies p50 ms": "0.250",
        "runs": "1.0", "of the task": "17%", "beside others": "44%",
    }  # fmt: skip
    page = html_page(result)
    assert "beside others" in page and "device p50 ms" in page
    assert (
        "det_backbone: 11.000 ms from 1.000 ms, device 9.000 ms, copies 0.250 ms, "
        "on a thread of its own, 8.000 ms beside other stages"
    ) in page
    assert "llm_decoder: 6.000 ms from 2.000 ms, 90 rows<" in page
    content = json.loads(json.dumps(result.to_dict()))
    assert not list(errors(content, result_schema(), result_schema()))
    assert Result.from_dict(content) == result
