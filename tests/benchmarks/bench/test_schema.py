"""The published schema takes what is written, and nothing that lacks a field or has a wrong type.

``recorded.json`` is a real result, ``visionllm-edge bench BUNDLE --task detect --task caption
--tokens 2 --rate 20 --concurrency 2 --accuracy 2`` of a small model, with the three longest layers
of every stage.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.benchmarks.bench.json_schema import errors
from tests.benchmarks.bench.made_up import made_up_result
from visionllm_edge.benchmarks.bench.measurement import Result
from visionllm_edge.benchmarks.bench.schema import SCHEMA_FILE, result_schema
from visionllm_edge.benchmarks.cli_bench import bench

PUBLISHED: dict[str, Any] = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
RECORDED = json.loads(Path(__file__).with_name("recorded.json").read_text(encoding="utf-8"))
# Objects whose keys are names of tasks, stages and the like: any may be absent.
MAPS = {"precision", "versions", "clocks_mhz", "temperatures_c", "first_ms", "per_request_j"}
MAPS |= {"accuracy", "detect", "caption"}
# A field that is left out where nothing is known.
OPTIONAL = {"p90", "p95", "p99", "device_ms", "copy_ms", "first_ms", "module", "peak_bytes"}
OPTIONAL |= {"roofline", "threads", "commit", "foreign_cores", "power_mode", "throttled", "rate"}
OPTIONAL |= {"cold", "jitter", "session", "per_token_j", "idle_w"}
# Fields of the same name that are always there.
ALWAYS = {("peak_bytes",), ("jitter", "rate"), ("cold", "first_ms")}


def wrong(result: Any) -> list[str]:
    return list(errors(result, PUBLISHED, PUBLISHED))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything in a result, of lists the first entry only."""
    if path:
        yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value[:1])
    for key, item in entries:
        if isinstance(item, (dict, list)):
            yield from places(item, (*path, key))
        else:
            yield (*path, key)


def parent(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        value = value[key]
    return value


def test_the_file_is_what_the_dataclasses_say() -> None:
    assert result_schema() == PUBLISHED


def test_what_is_written_is_valid() -> None:
    made_up = json.loads(json.dumps(made_up_result(session="a").to_dict()))
    assert wrong(RECORDED) == wrong(made_up) == []
    # And the runtime's own reader agrees.
    assert Result.from_dict(RECORDED).to_dict() == RECORDED


def test_a_missing_field_fails() -> None:
    count = 0
    for path in places(RECORDED):
        named = isinstance(path[-1], str) and not (len(path) > 1 and path[-2] in MAPS)
        if not named or (path[-1] in OPTIONAL and path not in ALWAYS):
            continue
        broken = copy.deepcopy(RECORDED)
        del parent(broken, path)[path[-1]]
        assert any("missing" in error for error in wrong(broken)), path
        count += 1
    assert count > 60


def test_a_wrong_type_or_null_fails() -> None:
    for path in places(RECORDED):
        was = parent(RECORDED, path)[path[-1]]
        for other in (None, True, [7] if not isinstance(was, list) else {"a": 7}):
            broken = copy.deepcopy(RECORDED)
            parent(broken, path)[path[-1]] = other
            assert wrong(broken), (path, other)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), "visionllm-edge-bench/2", "expected 'visionllm-edge-bench/1'"),
        (("extra",), 1, r"\$\.extra: not known"),
        (("tasks", 0, "stats", "median"), 1.0, "median: not known"),
        (("workload", "image_px"), [128], "shorter than 2"),
        (("workload", "image_px"), [128, 128, 3], "one too many"),
        (("workload", "seed"), -1, "less than 0"),
        (("workload", "seed"), 0.5, "expected integer"),
        (("bundle", "name"), "", "shorter than 1"),
        (("accuracy", "detect", "box_ap"), "high", "expected number"),
    ],
)
def test_refusals(path: tuple[Any, ...], value: object, message: str) -> None:
    broken = copy.deepcopy(RECORDED)
    parent(broken, path)[path[-1]] = value
    (error,) = wrong(broken)
    assert re.search(message, error)


def test_the_command_prints_the_file() -> None:
    done = CliRunner().invoke(bench, ["schema"], catch_exceptions=False)
    assert done.exit_code == 0 and json.loads(done.output) == PUBLISHED
