"""``visionllm-edge targets``: the target table, and what is known about one target."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields

import click

from visionllm_edge.runtime.releases import Release
from visionllm_edge.runtime.targets import TARGETS, Target, find_target

__all__ = ["targets"]

_COLUMNS = ("target", "sm", "backend", "precisions", "proof", "device")


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def targets(name: str | None, as_json: bool) -> None:
    """List the targets, or everything known about the target NAME and its release."""
    if name is None:
        rows = list(TARGETS.values())
        if as_json:
            click.echo(json.dumps([target.to_dict() for target in rows]))
            return
        for line in _table([_COLUMNS, *map(_cells, rows)]):
            click.echo(line)
        return
    target = find_target(name)
    facts = release_facts(target.release)
    if as_json:
        click.echo(json.dumps({**target.to_dict(), "release": facts}))
        return
    for key, value in target.to_dict().items():
        click.echo(f"{key:<18} {_text(value)}")
    click.echo(f"\n{target.release.label}")
    for key, fact in facts.items():
        click.echo(f"{key:<18} {_text(fact['value'])}\n{'':<18}   {fact['source']}")


def release_facts(release: Release) -> dict[str, dict[str, object]]:
    """Every fact of a release with its source, as plain JSON types."""
    out: dict[str, dict[str, object]] = {}
    for field in fields(release):
        if field.name in release.sources:
            value = getattr(release, field.name)
            plain = sorted(value) if isinstance(value, (frozenset, tuple)) else value
            out[field.name] = {"value": plain, "source": release.sources[field.name]}
    return out


def _cells(target: Target) -> tuple[str, ...]:
    known = (*target.precisions, *target.quantized)
    precisions = (f"{p}*" if p == target.precision else p for p in known)
    sm = ", ".join(f"{number // 10}.{number % 10}" for number in target.sm) or "-"
    label = target.release.label
    return (target.name, sm, label, " ".join(precisions), target.proof, target.device)


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    padded = ([c.ljust(w) for c, w in zip(row, widths, strict=True)] for row in rows)
    return ["  ".join(cells).rstrip() for cells in padded]


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return "-" if value is None or value == "" else str(value)
