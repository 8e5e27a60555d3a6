"""Options that ``eval``, ``bench`` and ``gallery`` share."""

from __future__ import annotations

import click

__all__ = ["JSON", "OVERLAP", "SEED", "THREADS"]

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
SEED = click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Which pictures: the same seed gives the same ones.",
)
THREADS = click.option("--threads", type=click.IntRange(min=1), help="CPU threads of the backend.")
OVERLAP = click.option(
    "--overlap/--no-overlap",
    default=None,
    help="Look at the picture while the language model runs [default: on a GPU].",
)
