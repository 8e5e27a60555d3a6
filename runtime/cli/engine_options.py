"""Options and output that `build` and `kit build` share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from visionllm_edge.runtime.engines.kit_build import BuildOptions, KitReport

__all__ = [
    "JSON",
    "PATH",
    "STAGES",
    "build_options",
    "device_options",
    "interruptible",
    "report_lines",
]

PATH = click.Path(path_type=Path)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
STAGES = click.option(
    "--stage",
    "stages",
    multiple=True,
    help="Build only this stage, or one size of it; may be given more than once.",
)
_MIB = 2**20


def device_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What every build on this machine can be told."""
    for option in (
        click.option("--verbose-log", is_flag=True, help="Keep every message of the builder."),
        click.option(
            "--no-cache", is_flag=True, help="Neither use nor keep engines of other kits."
        ),
        click.option(
            "--workspace",
            "workspace_mib",
            type=click.IntRange(min=1),
            metavar="MIB",
            help="Memory that the builder may use.",
        ),
        click.option(
            "--plugin-library",
            "libraries",
            type=PATH,
            multiple=True,
            help="Library with plugins, in place of the Python ones.",
        ),
    ):
        command = option(command)
    return command


def build_options(
    stages: tuple[str, ...],
    *,
    libraries: tuple[Path, ...],
    workspace_mib: int | None,
    no_cache: bool,
    verbose_log: bool,
    stand_in: str | None = None,
) -> BuildOptions:
    """The options of a build from those of the command line."""
    from visionllm_edge.runtime.engines.cache import EngineCache, default_engine_cache
    from visionllm_edge.runtime.engines.kit_build import BuildOptions

    return BuildOptions(
        stand_in=stand_in,
        stages=stages,
        libraries=libraries,
        cache=None if no_cache else EngineCache(default_engine_cache()),
        workspace_bytes=None if workspace_mib is None else workspace_mib * _MIB,
        verbose=verbose_log,
    )


def report_lines(report: KitReport) -> list[str]:
    """The table of a finished build."""
    lines = [f"{'engine':<28} {'MB':>9} {'parse s':>8} {'build s':>8} {'peak MB':>8}  golden"]
    for record in report.records:
        golden = record.golden.status
        if record.golden.share is not None:
            golden += f", {record.golden.share:.0%} of the limit ({record.golden.worst})"
        lines.append(
            f"{record.name:<28} {record.engine_bytes / 1e6:>9.2f} {record.parse_s:>8.1f} "
            f"{record.build_s:>8.1f} {record.peak_rss_bytes / 1e6:>8.0f}  {golden}"
            + (" (from the engine cache)" if record.reused else "")
        )
    where = "nothing sealed" if report.bundle is None else str(report.bundle)
    lines.append(f"{where}: {len(report.records)} engines, built on {report.device}")
    return lines


@contextlib.contextmanager
def interruptible(consequence: str) -> Iterator[None]:
    """An interruption is one line and exit code 1."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"Interrupted. {consequence}", err=True)
        click.get_current_context().exit(1)
