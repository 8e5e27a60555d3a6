"""Commands `build` and `kit make`. Results on stdout, progress on stderr.

The exporter's packages are imported when a command runs, so that help works without them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from visionllm_edge.export.kit import KitOptions

__all__ = ["build", "make"]

_Command = Callable[..., Any]


def _lowering_options(command: _Command) -> _Command:
    for option in (
        click.option(
            "--tf32", is_flag=True, help="Let fp32 matrix products round to TF32: fast, not exact."
        ),
        click.option(
            "--context",
            type=click.IntRange(min=1),
            help="Rows of the decoder's cache [default: the model's context].",
        ),
        click.option(
            "--no-plugins", is_flag=True, help="Standard operators only, right on every release."
        ),
        click.option(
            "--precision",
            "precisions",
            multiple=True,
            metavar="[STAGE=]PRECISION",
            help="fp32, fp16, bf16; int8 or fp8 for vision stages [default: the target's].",
        ),
        click.option(
            "--calibration",
            type=PATH,
            metavar="FOLDER",
            help="Pictures to measure the ranges of int8 and fp8 on [default: made ones].",
        ),
        click.option("--target", required=True, help="See `visionllm-edge targets`."),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("bundle", type=PATH)
@click.option("-o", "--output", required=True, type=PATH, help="Folder of the new bundle.")
@_lowering_options
@STAGES
@device_options
@click.option("--keep-kit", is_flag=True, help="Leave the work folder OUTPUT.kit behind.")
@JSON
def build(
    bundle: Path,
    output: Path,
    target: str,
    precisions: tuple[str, ...],
    no_plugins: bool,
    context: int | None,
    calibration: Path | None,
    tf32: bool,
    stages: tuple[str, ...],
    keep_kit: bool,
    as_json: bool,
    **device: Any,
) -> None:
    """Build the engines of BUNDLE for a target here, and seal a new bundle."""
    with interruptible("Finished stages are kept; start the same command again to go on."):
        from visionllm_edge.export.kit import make_kit
        from visionllm_edge.runtime.engines.kit_build import build_kit, check_machine
        from visionllm_edge.runtime.engines.progress import BuildProgress
        from visionllm_edge.runtime.targets import find_target

        row = find_target(target)
        if row.backend != "onnxruntime":  # which `make_kit` refuses with a better reason
            check_machine(row)
        # Beside the output: an interrupted build goes on where it was.
        kit = output.parent / f"{output.name}.kit"
        progress = BuildProgress()
        options = _kit_options(precisions, no_plugins, context, calibration, tf32)
        make_kit(bundle, kit, target, options, progress.note)
        report = build_kit(kit, output, build_options(stages, **device), progress)
        if report.bundle is not None and not keep_kit:
            shutil.rmtree(kit)
    if as_json:
        click.echo(json.dumps(report.to_dict()))
        return
    for line in report_lines(report):
        click.echo(line)


@click.command()
@click.argument("bundle", type=PATH)
@click.option("-o", "--output", required=True, type=PATH, help="Folder of the kit.")
@_lowering_options
@JSON
def make(
    bundle: Path,
    output: Path,
    target: str,
    precisions: tuple[str, ...],
    no_plugins: bool,
    context: int | None,
    calibration: Path | None,
    tf32: bool,
    as_json: bool,
) -> None:
    """Write a kit from which a device builds the engines of BUNDLE."""
    with interruptible("No kit was written."):
        from visionllm_edge.export.kit import make_kit
        from visionllm_edge.runtime.engines.kit_folder import Kit
        from visionllm_edge.runtime.engines.progress import BuildProgress

        note = BuildProgress().note
        options = _kit_options(precisions, no_plugins, context, calibration, tf32)
        make_kit(bundle, output, target, options, note)
        kit = Kit.open(output)
    size = sum(entry.size for entry in kit.plan.files.values())
    if as_json:
        names = [plan.name for plan in kit.plan.stages]
        click.echo(json.dumps({"kit": str(output), "stages": names, "bytes": size}))
        return
    click.echo(
        f"{output}: {len(kit.plan.stages)} engines to build for {target}, {size / 1e6:.1f} MB. "
        f"On the device: visionllm-edge kit build {output.name} -o BUNDLE"
    )


def _kit_options(
    precisions: tuple[str, ...],
    no_plugins: bool,
    context: int | None,
    calibration: Path | None,
    tf32: bool,
) -> KitOptions:
    from visionllm_edge.export.kit import KitOptions
    from visionllm_edge.export.stage_precisions import precisions_for

    common, own = precisions_for(precisions)
    return KitOptions(
        precision=common,
        stage_precision=own,
        plugins=not no_plugins,
        context=context,
        flags=("TF32",) if tf32 else (),
        calibration=calibration,
    )
