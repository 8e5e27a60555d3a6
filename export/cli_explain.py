"""Command `explain`: the plan of a build, without building. Result on stdout.

The exporter's packages are imported when the command runs, so that help works without them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from visionllm_edge.export.explain import GraphPlan
    from visionllm_edge.runtime.targets import Target

__all__ = ["explain"]

# Ports of the cache come by the dozen and are alike.
_CACHE = ("past_key_values.", "present.")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--target", required=True, help="See `visionllm-edge targets`.")
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    metavar="[STAGE=]PRECISION",
    help="fp32, fp16, bf16; int8 or fp8 for vision stages [default: the target's].",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Pictures to measure the ranges of int8 and fp8 on [default: made ones].",
)
@click.option("--no-plugins", is_flag=True, help="Standard operators only.")
@click.option("--context", type=click.IntRange(min=1), help="Rows of the decoder's cache.")
@click.option("--check", is_flag=True, help="Also run the lowered graphs here and compare.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def explain(
    bundle: Path,
    target: str,
    precisions: tuple[str, ...],
    no_plugins: bool,
    context: int | None,
    calibration: Path | None,
    check: bool,
    as_json: bool,
) -> None:
    """Show what a build of BUNDLE for a target would do, without building."""
    from visionllm_edge.export.explain import Choices, explain_bundle
    from visionllm_edge.export.stage_precisions import precisions_for
    from visionllm_edge.runtime.bundle import Bundle
    from visionllm_edge.runtime.targets import find_target

    row = find_target(target)
    common, own = precisions_for(precisions)
    choices = Choices(common, own, not no_plugins, context, check, calibration)
    plans = explain_bundle(Bundle.open(bundle, verify=False), row, choices)
    if as_json:
        graphs = [plan.to_dict() for plan in plans]
        click.echo(json.dumps({"target": row.to_dict(), "graphs": graphs}))
        return
    for line in (*_head(row), *(line for plan in plans for line in ("", *_lines(plan)))):
        click.echo(line)


def _head(target: Target) -> list[str]:
    return [
        f"target    {target.name}: {target.device}",
        f"backend   {target.release.label}",
        f"computes  {', '.join((*target.precisions, *target.quantized))}, "
        f"by default {target.precision}",
        f"proof     {target.proof}",
    ]


def _lines(plan: GraphPlan) -> list[str]:
    from visionllm_edge.export.explain import form_counts

    lines = [
        f"graph {plan.name}",
        f"  precision {plan.precision}, opset {plan.opset}, {plan.nodes} nodes",
    ]
    lines += [f"  form      {text}" for text in form_counts(plan)]
    if not plan.forms:
        lines.append("  form      standard operators only")
    if plan.kept:
        rules = ", ".join(f"{rule} {count}" for rule, count in plan.kept.items())
        lines.append(f"  fp32      {sum(plan.kept.values())} nodes: {rules}")
    if plan.quantization is not None:
        lines += [f"  {plan.quantization.precision:<9} {text}" for text in _quantized(plan)]
    lines += [f"  in        {text}" for text in _ports(plan.inputs)]
    lines += [f"  out       {text}" for text in _ports(plan.outputs)]
    for use, shapes in plan.profiles.items():
        names = [name for name in shapes if not name.startswith(_CACHE)]
        names += [name for name in shapes if name.startswith(_CACHE)][:1]
        for name in names:
            ranges = " .. ".join("x".join(map(str, shape)) for shape in shapes[name])
            lines.append(f"  profile   {use}: {name} {ranges}")
    return lines + [f"  check     {text}" for text in plan.checks]


def _quantized(plan: GraphPlan) -> list[str]:
    made = plan.quantization
    assert made is not None, "asked for by the caller"
    kept = Counter(made.kept.values())
    rules = ", ".join(f"{rule} {count}" for rule, count in kept.items())
    pictures = made.report.get("pictures", "")
    return [
        f"{len(made.layers)} layers, ranges by {made.method} on {pictures}",
        f"{sum(kept.values())} layers kept in half precision: {rules or 'none'}",
    ]


def _ports(ports: Mapping[str, str]) -> list[str]:
    cache = [name for name in ports if name.startswith(_CACHE)]
    texts = [f"{name} {text}" for name, text in ports.items() if name not in cache]
    if cache:
        more = f" and {len(cache) - 1} alike" if cache[1:] else ""
        texts.append(f"{cache[0]} {ports[cache[0]]}{more}")
    return texts
