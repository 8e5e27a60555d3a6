"""A result as one page that opens from disk: no network, no scripts of others, light and dark."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence

from visionllm_edge.benchmarks.bench.measurement import DeviceState, Result, StageTimes
from visionllm_edge.benchmarks.bench.page.plots import (
    distribution,
    gantt,
    roofline_plot,
    stage_names,
    stage_split,
)
from visionllm_edge.benchmarks.bench.tables import result_tables

__all__ = ["html_page", "plot_files"]

_LAYERS_SHOWN = 40

_STYLE = """
:root{color-scheme:light dark;--ink:#1d2129;--soft:#5b6472;--grid:#dfe3e8;--paper:#fff;
--card:#f6f7f9;--host:#c3c8d0;--warn:#fff4d6}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ee;--soft:#a0a8b5;--grid:#343a44;
--paper:#14171c;--card:#1d2128;--host:#555d69;--warn:#3d3413}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:860px;margin:0 auto;padding:24px 16px 64px}
h1{font-size:24px;margin:0 0 4px}h2{font-size:18px;margin:36px 0 8px}
p{margin:6px 0;color:var(--soft)}svg{width:100%;height:auto;display:block}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:20px 0}
.card{background:var(--card);border-radius:8px;padding:12px 14px}
.card b{display:block;font-size:22px;font-variant-numeric:tabular-nums}
.card span{color:var(--soft);font-size:13px}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:14px;
font-variant-numeric:tabular-nums}
th,td{padding:5px 10px;text-align:right;border-bottom:1px solid var(--grid);white-space:nowrap}
th:first-child,td:first-child{text-align:left}th{color:var(--soft);font-weight:600}
.warn{background:var(--warn);border-radius:8px;padding:8px 14px;margin:8px 0}
summary{cursor:pointer;color:var(--soft)}pre{overflow-x:auto;font-size:12px}
"""


def html_page(result: Result) -> str:
    """The page."""
    names = stage_names(result)
    facts, place = result.bundle, result.environment
    parts = [
        f"<h1>{_safe(facts.name)}</h1>",
        f"<p>{_safe(place.device)}, {place.cores} cores, target {_safe(facts.target)}, "
        f"{_safe(result.created)}</p>",
        *(f'<div class="warn">{_safe(text)}</div>' for text in result.warnings),
        _cards(result),
    ]
    for title, rows in result_tables(result):
        if title.startswith(facts.name):
            parts.append(f"<h2>Requests</h2>{_table(rows)}")
    parts += ["<h2>Where the time goes</h2>", stage_split(result, names)]
    parts.append("<h2>The chain, as it ran</h2>")
    parts += [gantt(task, names) for task in result.tasks]
    parts.append("<h2>How the times spread</h2>")
    parts += [distribution(task) for task in result.tasks]
    parts += _roofline(result, names)
    parts += _layers(result.stages)
    for title, rows in result_tables(result):
        if not title.startswith(facts.name):
            parts.append(f"<h2>{_safe(title)}</h2>{_table(rows)}")
    parts += [_environment(result)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{_safe(facts.name)}: latency</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def plot_files(result: Result) -> dict[str, str]:
    """Every picture of the page as an SVG file of its own, by file name."""
    names = stage_names(result)
    files = {"stages.svg": stage_split(result, names)}
    for task in result.tasks:
        files[f"{task.name}_chain.svg"] = gantt(task, names)
        files[f"{task.name}_times.svg"] = distribution(task)
    roofline = roofline_plot(result.stages, names)
    return files if roofline is None else {**files, "roofline.svg": roofline}


def _cards(result: Result) -> str:
    cards = [(task.name, f"{task.stats.p50:.2f} ms", "median") for task in result.tasks]
    cards += [
        (f"{one.task}, words", f"{one.tokens_per_s:.0f}", "tokens a second") for one in result.llm
    ]
    cards.append(("memory", f"{result.peak_bytes / 1e6:.0f} MB", "peak of the process"))
    cards.append(("bundle", f"{result.bundle.file_bytes / 1e6:.1f} MB", "files"))
    return (
        '<div class="cards">'
        + "".join(
            f'<div class="card"><span>{_safe(title)}</span><b>{_safe(value)}</b>'
            f"<span>{_safe(note)}</span></div>"
            for title, value, note in cards
        )
        + "</div>"
    )


def _roofline(result: Result, names: Sequence[str]) -> list[str]:
    plot = roofline_plot(result.stages, names)
    return [] if plot is None else ["<h2>Every stage against its own limit</h2>", plot]


def _layers(stages: Sequence[StageTimes]) -> list[str]:
    out = []
    for entry in stages:
        if entry.layers:
            rows = [["module", "operator", "ms"]]
            rows += [
                [layer.module or "(not named)", layer.op, f"{layer.total_ms:.3f}"]
                for layer in entry.layers[:_LAYERS_SHOWN]
            ]
            head = f"{entry.task}: {entry.stage}, the slowest layers"
            out.append(f"<details><summary>{_safe(head)}</summary>{_table(rows)}</details>")
    return ["<h2>Layers</h2>", *out] if out else []


def _environment(result: Result) -> str:
    place = result.environment
    rows = [["what", "value"]]
    rows += [
        ["threads", "the backend's choice" if place.threads is None else str(place.threads)],
        ["overlap", {None: "the runtime's choice", True: "on", False: "off"}[place.overlap]],
        ["timer", place.timer],
        ["commit", place.commit or "not a source tree"],
        ["bundle", result.bundle.fingerprint],
        ["other work", f"{place.foreign_cores or 0:.2f} cores"],
    ]
    rows += [[name, version] for name, version in place.versions.items()]
    for when, state in (("before", place.before), ("after", place.after)):
        rows += [[f"{what}, {when}", value] for what, value in _state(state)]
    workload = json.dumps(result.to_dict()["workload"])
    return (
        f"<h2>Where and how it was measured</h2>{_table(rows, wrap=True)}"
        f"<details><summary>workload</summary><pre>{_safe(workload)}</pre></details>"
    )


def _state(state: DeviceState) -> list[tuple[str, str]]:
    clocks = ", ".join(f"{name} {mhz:.0f} MHz" for name, mhz in state.clocks_mhz.items())
    heat = ", ".join(f"{name} {celsius:.0f} °C" for name, celsius in state.temperatures_c.items())
    return [
        ("power mode", state.power_mode or "not available"),
        ("clocks", clocks or "not available"),
        ("temperatures", heat or "not available"),
        ("throttled", state.throttled or "not reported"),
    ]


def _table(rows: Sequence[Sequence[str]], *, wrap: bool = False) -> str:
    head, *body = rows
    style = ' style="white-space:normal;text-align:left"' if wrap else ""
    cells = "".join(f"<th>{_safe(cell)}</th>" for cell in head)
    lines = "".join(
        "<tr>" + "".join(f"<td{style}>{_safe(cell)}</td>" for cell in row) + "</tr>" for row in body
    )
    return f'<div class="scroll"><table><tr>{cells}</tr>{lines}</table></div>'


def _safe(words: str) -> str:
    return html.escape(words)
