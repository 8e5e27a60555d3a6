"""A result as a table: for the terminal, and in Markdown."""

from __future__ import annotations

from visionllm_edge.benchmarks.bench.measurement import Result
from visionllm_edge.benchmarks.bench.statistics import Stats
from visionllm_edge.benchmarks.bench.table_text import aligned, markdown

__all__ = ["markdown_table", "result_tables", "text_table"]

_INDENT = "  "
_HEAD = ("p50 ms", "95 % interval", "p90", "p95", "p99", "cv", "n")


def text_table(result: Result) -> str:
    """For the terminal."""
    parts = [f"{title}\n{aligned(rows, indent=_INDENT)}" for title, rows in result_tables(result)]
    return "\n\n".join(parts) + _tail(result)


def markdown_table(result: Result) -> str:
    """For a document."""
    parts = []
    for title, rows in result_tables(result):
        parts.append(f"### {title}\n\n{markdown(rows)}")
    return "\n\n".join(parts) + "\n" + _tail(result) + "\n"


def result_tables(result: Result) -> list[tuple[str, list[list[str]]]]:
    """Title and rows of every table; the first row of each is its head."""
    facts, place = result.bundle, result.environment
    tables = [
        (
            f"{facts.name} on {place.device}, {place.cores} cores",
            [["task", *_HEAD], *([task.name, *_cells(task.stats)] for task in result.tasks)],
        )
    ]
    tables.append(_stage_table(result))
    if result.llm:
        rows = [
            [
                one.task,
                str(one.prompt_rows),
                f"{one.first_token_ms.p50:.2f}",
                f"{one.inter_token_ms.p50:.3f}",
                f"{one.tokens_per_s:.1f}",
            ]
            for one in result.llm
        ]
        head = ["words", "prompt rows", "first token ms", "between tokens ms", "tokens/s"]
        tables.append(("Language model", [head, *rows]))
    others = _other_rows(result)
    if others:
        tables.append(("Other ways to ask", [["what", "value"], *others]))
    if result.accuracy:
        rows = [
            [f"{task}: {name}", f"{value:.4g}"]
            for task, metrics in result.accuracy.items()
            for name, value in metrics.items()
        ]
        tables.append(("How right this bundle is", [["metric", "value"], *rows]))
    return tables


def _stage_table(result: Result) -> tuple[str, list[list[str]]]:
    """Columns that no stage has anything for are left out."""

    def median(stats: Stats | None) -> str:
        return "" if stats is None else f"{stats.p50:.3f}"

    def percent(share: float | None) -> str:
        return "" if share is None else f"{share:.0%}"

    title = "Stages (measured; the limit is counted from the graph)"
    host = "p50 ms"
    if any(entry.device_ms for entry in result.stages):
        title = (
            "Stages (measured; the host need not wait for the device, whose times are its own; "
            "the limit is counted from the graph)"
        )
        host = "host p50 ms"
    columns = {
        "stage": [f"{entry.task}: {entry.stage}" for entry in result.stages],
        host: [median(entry.stats) for entry in result.stages],
        "device p50 ms": [median(entry.device_ms) for entry in result.stages],
        "copies p50 ms": [median(entry.copy_ms) for entry in result.stages],
        "runs": [f"{entry.runs_per_request:.1f}" for entry in result.stages],
        "of the task": [percent(entry.share) for entry in result.stages],
        "beside others": [percent(entry.beside) for entry in result.stages],
        "peak MB": [
            "" if entry.peak_bytes is None else f"{entry.peak_bytes / 1e6:.0f}"
            for entry in result.stages
        ],
        "of its limit": [
            percent(entry.roofline.share if entry.roofline else None) for entry in result.stages
        ],
        "bound by": [
            "" if entry.roofline is None else entry.roofline.bound for entry in result.stages
        ],
    }
    known = {name: cells for name, cells in columns.items() if any(cells)}
    return title, [list(known), *map(list, zip(*known.values(), strict=True))]


def _other_rows(result: Result) -> list[list[str]]:
    rows = []
    if result.cold is not None:
        rows.append(["load, new process", f"{result.cold.load_ms:.0f} ms"])
        rows += [
            [f"first {task}, new process", f"{ms:.1f} ms"]
            for task, ms in result.cold.first_ms.items()
        ]
    if result.jitter is not None:
        one = result.jitter
        rows.append(
            [
                f"{one.task} at {one.rate:g} Hz",
                f"p50 {one.latency_ms.p50:.2f} ms, worst {one.latency_ms.largest:.2f}, "
                f"late {one.late:.0%}, skipped {one.skipped}",
            ]
        )
    rows += [
        [
            f"{one.task}, {one.processes} processes",
            f"{one.requests_per_s:.1f} requests/s, p50 {one.latency_ms.p50:.2f} ms",
        ]
        for one in result.throughput
    ]
    rows.append(["peak memory of the process", f"{result.peak_bytes / 1e6:.0f} MB"])
    energy = result.energy
    rows += [
        [f"energy of one {task} ({energy.source})", f"{joules:.3f} J"]
        for task, joules in energy.per_request_j.items()
    ] or [["energy", energy.source]]
    return rows


def _cells(stats: Stats) -> list[str]:
    def show(value: float | None) -> str:
        return "too few" if value is None else f"{value:.2f}"

    return [
        f"{stats.p50:.2f}",
        f"{stats.low:.2f} to {stats.high:.2f}",
        show(stats.p90),
        show(stats.p95),
        show(stats.p99),
        f"{stats.cv:.1%}",
        str(stats.count),
    ]


def _tail(result: Result) -> str:
    return "".join(f"\n\nWarning: {text}" for text in result.warnings)
