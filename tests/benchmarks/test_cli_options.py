"""An option that several commands have means the same in each."""

from __future__ import annotations

import click
import pytest

from visionllm_edge.benchmarks.cli import eval_
from visionllm_edge.benchmarks.cli_bench import bench
from visionllm_edge.benchmarks.cli_gallery import gallery

COMMANDS = (eval_, gallery, *bench.commands.values())


@pytest.mark.parametrize(("name", "count"), [("--seed", 4), ("--threads", 5), ("--json", 3)])
def test_it_has_one_definition(name: str, count: int) -> None:
    found = [
        (option.help, repr(option.type), option.default, option.name)
        for command in COMMANDS
        for option in command.params
        if isinstance(option, click.Option) and name in option.opts
    ]
    assert len(found) >= count and len(set(found)) == 1
