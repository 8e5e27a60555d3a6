"""The page holds every number, opens without a network, and says nothing that is not there."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.benchmarks.bench.json_schema import errors
from tests.benchmarks.bench.made_up import STAGES, made_up_result, noisy
from visionllm_edge.benchmarks.bench.measurement import Result
from visionllm_edge.benchmarks.bench.page import html_page, plot_files
from visionllm_edge.benchmarks.bench.page.plots import gantt, roofline_plot
from visionllm_edge.benchmarks.bench.page.svg import Axis, ticks
from visionllm_edge.benchmarks.bench.run import stage_times
from visionllm_edge.benchmarks.bench.sampling import Timed
from visionllm_edge.benchmarks.bench.schema import result_schema
from visionllm_edge.benchmarks.bench.statistics import summarize
from visionllm_edge.benchmarks.bench.tables import markdown_table, text_table
from visionllm_edge.runtime.errors import InputError


class Reader(HTMLParser):
    """Collects words and addresses; checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "action")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_is_whole_and_alone() -> None:
    page = html_page(made_up_result())
    reader = Reader()
    reader.feed(page)
    assert not reader.open and not reader.addresses
    assert "url(" not in page and "<script" not in page
    words = " ".join(reader.words)
    for expected in (*STAGES, "tiny & co", "A warning.", "governor performance", "too few"):
        assert expected in words
    assert "model.layers.0.mlp<x>" in words  # escaped in the file, whole for the reader
    assert "box_ap" in words and "not available: made up" in words


def test_device_times_are_shown_where_there_are_any() -> None:
    plain = made_up_result()
    samples = [
        dataclasses.replace(
            one,
            spans=tuple(
                dataclasses.replace(span, device_ms=span.host_ms / 2, copy_ms=0.25)
                if span.stage == "det_encoder"
                else span
                for span in one.spans
            ),
        )
        for one in plain.tasks[0].samples
    ]
    task = dataclasses.replace(plain.tasks[0], samples=tuple(samples))
    timed = [Timed(one.total_ms, one.spans, None, ()) for one in samples]
    entries = stage_times(task, timed, {})
    times = {entry.stage: (entry.device_ms, entry.copy_ms) for entry in entries}
    device, copies = times.pop("det_encoder")
    assert device is not None and copies is not None
    (encoder,) = [entry for entry in entries if entry.stage == "det_encoder"]
    assert device.p50 == pytest.approx(encoder.stats.p50 / 2) and copies.p50 == 0.25
    assert set(times.values()) == {(None, None)}, "stages on the host"

    result = dataclasses.replace(plain, tasks=(task,), stages=tuple(entries))
    (row,) = [
        line for line in markdown_table(result).splitlines() if line.startswith("| detect: det_enc")
    ]
    cells = [cell.strip() for cell in row.split("|")[2:5]]
    assert cells == [f"{encoder.stats.p50:.3f}", f"{device.p50:.3f}", "0.250"]
    content = json.loads(json.dumps(result.to_dict()))
    assert not list(errors(content, result_schema(), result_schema()))
    assert Result.from_dict(content) == result
    for shown in (markdown_table(result), text_table(result), html_page(result)):
        assert "host p50 ms" in shown and "device p50 ms" in shown and "copies p50 ms" in shown
    assert "copies 0.250 ms" in gantt(task, list(STAGES))
    for hidden in (markdown_table(plain), text_table(plain), html_page(plain)):
        assert not any(word in hidden for word in ("host p50", "device p50", "copies", "device 0"))
    assert "device_ms" not in json.dumps(plain.to_dict())


def test_every_picture_is_good_xml() -> None:
    files = plot_files(made_up_result())
    assert set(files) == {"stages.svg", "detect_chain.svg", "detect_times.svg", "roofline.svg"}
    for text in files.values():
        root = ElementTree.fromstring(text)
        assert root.tag.endswith("svg") and root.get("aria-label")


def test_a_stage_that_runs_often_stands_below_its_limit() -> None:
    stage = made_up_result().stages[0]
    often = dataclasses.replace(stage, stats=summarize([0.1] * 60), runs_per_request=16.0)
    assert often.roofline is not None and often.roofline.share < 1
    picture = roofline_plot([often], list(STAGES))
    assert picture is not None
    root = ElementTree.fromstring(picture)
    (dot,) = root.iter("{http://www.w3.org/2000/svg}circle")
    bars = [
        line
        for line in root.iter("{http://www.w3.org/2000/svg}line")
        if line.get("stroke-dasharray")
    ]
    assert len(bars) == 1 and float(dot.get("cy", 0)) > float(bars[0].get("y1", 0))


@pytest.mark.parametrize(
    "times", [[5.0] * 30, [1.0] * 29 + [1e6], [0.001 * i for i in range(1, 31)]]
)
def test_odd_times_make_a_picture_too(times: list[float]) -> None:
    base = noisy(np.random.default_rng(0), len(times))
    samples = [type(one)(time, one.spans) for one, time in zip(base, times, strict=True)]
    for text in plot_files(made_up_result(samples)).values():
        ElementTree.fromstring(text)
        assert "nan" not in text and "inf" not in text


def test_a_result_comes_back_from_its_json() -> None:
    result = made_up_result(session="s")
    again = Result.from_dict(json.loads(json.dumps(result.to_dict())))
    assert again == result
    content = result.to_dict()
    content["tasks"] = [{"name": "detect"}]
    with pytest.raises(InputError, match=r"tasks\[0\]"):
        Result.from_dict(content)


def test_tables_hold_measured_and_counted_apart() -> None:
    result = made_up_result()
    text = text_table(result)
    assert "of its limit" in text and "too few" in text and "Warning: A warning." in text
    lines = markdown_table(result).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert table and all(line.count("|") == table[0].count("|") for line in table[:3])


def test_axes() -> None:
    assert ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]
    assert ticks(3, 3) == [3]
    axis = Axis(1, 100, 0, 200, logarithmic=True)
    assert axis.at(10) == pytest.approx(100) and axis.marks() == [1, 10, 100]
