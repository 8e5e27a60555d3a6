"""``visionllm-edge kit``: make a build kit, build it on a device, see how far it is.

`make` lives with the exporter and is loaded by name when it is called.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import click

from visionllm_edge.runtime.cli.engine_options import (
    JSON,
    PATH,
    STAGES,
    build_options,
    device_options,
    interruptible,
    report_lines,
)

__all__ = ["kit"]

_MAKE = ("visionllm_edge.export.cli_build", "make")


class _KitGroup(click.Group):
    """Knows `make` by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the workflow."""
        return ["make", "build", "status"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the exporter's command when it is asked for."""
        if cmd_name != "make":
            return super().get_command(ctx, cmd_name)
        command = getattr(importlib.import_module(_MAKE[0]), _MAKE[1])
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_KitGroup)
def kit() -> None:
    """Build engines on a device that has TensorRT but not the exporter."""


@kit.command("build")
@click.argument("folder", type=PATH)
@click.option("-o", "--output", type=PATH, help="Folder of the sealed bundle; none: build only.")
@click.option(
    "--with",
    "stand_in",
    type=click.Choice(["tensorrt", "tensorrt_rtx"]),
    help="Build with this instead of the target's TensorRT, to try a kit; marked in the bundle.",
)
@STAGES
@device_options
@JSON
def build(
    folder: Path,
    output: Path | None,
    stand_in: str | None,
    stages: tuple[str, ...],
    as_json: bool,
    **device: Any,
) -> None:
    """Build the kit FOLDER here, check it against its golden files, and seal a bundle."""
    with interruptible("Finished stages are kept; start the same command again to go on."):
        from visionllm_edge.runtime.engines.kit_build import build_kit
        from visionllm_edge.runtime.engines.progress import BuildProgress

        options = build_options(stages, stand_in=stand_in, **device)
        report = build_kit(folder, output, options, BuildProgress())
    if as_json:
        click.echo(json.dumps(report.to_dict()))
        return
    for line in report_lines(report):
        click.echo(line)


@kit.command("status")
@click.argument("folder", type=PATH)
@JSON
def status(folder: Path, as_json: bool) -> None:
    """Show which engines of the kit FOLDER are built."""
    from visionllm_edge.runtime.engines.kit_build import kit_status
    from visionllm_edge.runtime.engines.kit_folder import Kit

    records = kit_status(folder)
    if as_json:
        told = {name: None if r is None else r.to_dict() for name, r in records.items()}
        click.echo(json.dumps(told))
        return
    target = Kit.open(folder).plan.target
    release = f" {target.tensorrt}" if target.tensorrt else ""
    click.echo(f"kit for {target.name}: {target.backend}{release}, {target.precision}")
    for name, record in records.items():
        built = (
            "not built"
            if record is None
            else f"{record.engine_bytes / 1e6:.2f} MB by {record.backend} {record.version}, "
            f"golden {record.golden.status}"
        )
        click.echo(f"  {name:<28} {built}")
