"""Options that the commands of ``visionllm-edge bench`` share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from visionllm_edge.benchmarks.cli_options import OVERLAP, SEED, THREADS

__all__ = ["BundleFirst", "Size", "measuring_options", "write_text"]


class BundleFirst(click.Group):
    """A group whose command may be left out: ``bench BUNDLE`` is ``bench run BUNDLE``."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Take what is no command's name as the bundle of ``run``."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["run", *args]
        return super().resolve_command(ctx, args)


class Size(click.ParamType[Any]):
    """``640x480``, width first as people say it; gives (height, width)."""

    name = "WxH"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """See the class."""
        if isinstance(value, tuple):
            return value
        width, _, height = str(value).partition("x")
        if not (width.isdigit() and height.isdigit() and int(width) >= 32 <= int(height)):
            self.fail(f"expected WIDTHxHEIGHT of at least 32x32, got {value!r}", param, ctx)
        return int(height), int(width)


def measuring_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of a measurement; they arrive as ``workload`` and ``options``."""

    @click.option(
        "--task", "tasks", multiple=True, help="Only this task. Repeatable; all by default."
    )
    @click.option(
        "--classes",
        default="circle,person,red square",
        show_default=True,
        help="What detect and segment look for, with commas between.",
    )
    @click.option(
        "--image-size",
        type=Size(),
        default="128x128",
        show_default=True,
        help="Width and height of the pictures.",
    )
    @click.option(
        "--tokens",
        type=click.IntRange(min=2),
        default=16,
        show_default=True,
        help="Length of every answer in words.",
    )
    @SEED
    @click.option(
        "--interval",
        type=click.FloatRange(0.001, 0.5),
        default=0.02,
        show_default=True,
        help="Stop when the median is known to plus or minus this share.",
    )
    @click.option(
        "--limit",
        type=click.FloatRange(min=0.1),
        default=20.0,
        show_default=True,
        help="Stop a task after so many seconds all the same.",
    )
    @click.option("--warmup", type=click.IntRange(min=1), default=3, show_default=True)
    @click.option(
        "--percentile",
        "percentiles",
        multiple=True,
        type=click.FloatRange(1, 99.99),
        default=(50, 90),
        show_default=True,
        help="Refuse a result without this percentile. Repeatable.",
    )
    @THREADS
    @OVERLAP
    @click.option(
        "--cold/--no-cold", default=True, show_default=True, help="First requests as well."
    )
    @click.option("--rate", type=click.FloatRange(min=0.01), help="Also at this fixed rate, in Hz.")
    @click.option(
        "--concurrency",
        multiple=True,
        type=click.IntRange(min=1),
        help="Also with so many processes at once. Repeatable.",
    )
    @click.option(
        "--accuracy",
        "accuracy_pictures",
        type=click.IntRange(min=0),
        default=64,
        show_default=True,
        help="Also how right the answers are, on so many pictures.",
    )
    @click.option(
        "--profile/--no-profile",
        default=True,
        show_default=True,
        help="Also what every layer costs, and each stage's limit on this machine.",
    )
    @functools.wraps(command)
    def measuring(
        *args: Any,
        tasks: tuple[str, ...],
        classes: str,
        image_size: tuple[int, int],
        tokens: int,
        seed: int,
        interval: float,
        limit: float,
        warmup: int,
        percentiles: tuple[float, ...],
        threads: int | None,
        overlap: bool | None,
        cold: bool,
        rate: float | None,
        concurrency: tuple[int, ...],
        accuracy_pictures: int,
        profile: bool,
        **rest: Any,
    ) -> Any:
        from visionllm_edge.benchmarks.bench.measurement import Workload
        from visionllm_edge.benchmarks.bench.run import BenchOptions
        from visionllm_edge.benchmarks.bench.sampling import Budget

        rest["workload"] = Workload(
            image_px=image_size,
            classes=tuple(name.strip() for name in classes.split(",") if name.strip()),
            output_tokens=tokens,
            seed=seed,
            interval=interval,
            limit_s=limit,
            rate=rate,
            concurrency=concurrency,
        )
        rest["options"] = BenchOptions(
            tasks=tasks,
            budget=Budget(interval, limit, warmup, percentiles),
            threads=threads,
            overlap=overlap,
            cold=cold,
            rate=rate,
            concurrency=concurrency,
            accuracy_pictures=accuracy_pictures,
            profile=profile,
        )
        return command(*args, **rest)

    return measuring


def write_text(path: Path, text: str) -> None:
    """Write a report; its folder is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    click.echo(f"wrote {path}", err=True)
