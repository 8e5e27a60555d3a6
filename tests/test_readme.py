"""The README says nothing that is not there: commands, options, make targets, links, names."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from visionllm_edge.runtime.cli import main

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def shell_lines() -> list[str]:
    return [line for block in blocks("console") for line in block.splitlines() if line.strip()]


def command_of(name: str) -> click.Command:
    command = main.get_command(click.Context(main), name)
    assert command is not None, f"no command {name!r}"
    return command


def refused(line: str) -> Iterator[str]:
    """What is wrong with a ``visionllm-edge`` line; paths need not exist."""
    _, name, *arguments = shlex.split(line, comments=True)
    command = main.get_command(click.Context(main), name)
    if isinstance(command, click.Group):
        # A group may take its first argument as that of a command left out.
        try:
            _, command, arguments = command.resolve_command(click.Context(command), arguments)
        except click.UsageError as error:
            yield error.format_message()
            return
    if command is None:
        yield f"no command {name!r}"
        return
    try:
        parser = command.make_parser(click.Context(command))
        values, left, _ = parser.parse_args(list(arguments))
    except click.UsageError as error:
        yield error.format_message()
        return
    if left:
        yield f"arguments {left} are not taken"
    for parameter in command.params:
        value = values.get(parameter.name or "")
        if isinstance(parameter.type, click.Choice) and isinstance(value, str):
            if value not in parameter.type.choices:
                yield f"{parameter.name} {value!r} is none of {list(parameter.type.choices)}"
        elif parameter.required and not value:
            yield f"{parameter.name} is missing"


def test_every_command_line_is_taken() -> None:
    lines = [line for line in shell_lines() if line.startswith("visionllm-edge ")]
    assert len(lines) >= 5
    for line in lines:
        assert list(refused(line)) == [], line


@pytest.mark.parametrize(
    "line",
    [
        "visionllm-edge dance",
        "visionllm-edge eval bundle --task caption --imagess 3",
        "visionllm-edge eval bundle --task dance",
        "visionllm-edge eval bundle",
        "visionllm-edge eval",
        "visionllm-edge kit dance",
        "visionllm-edge bench bundle --imagess 3",
    ],
)
def test_a_wrong_command_line_is_seen(line: str) -> None:
    assert list(refused(line))


def test_every_make_target_is_there() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"(?<!kit )\bmake (\w+)", README))
    assert {"demo", "test", "check"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_table_of_commands_is_the_list_of_commands() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", README, flags=re.MULTILINE)
    assert sorted(rows) == sorted(main.list_commands(click.Context(main)))
    for name in rows:
        assert command_of(name).get_short_help_str()


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    missing = [link for link in links if not (REPOSITORY / link).exists()]
    assert missing == []


def test_the_python_example_uses_names_that_exist() -> None:
    from visionllm_edge.runtime import VisionLLM
    from visionllm_edge.runtime.results import Detection, DetectionResult, TextResult

    (example,) = blocks("python")
    tree = ast.parse(example)
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    known = {"save"}
    for owner in (VisionLLM, DetectionResult, TextResult, Detection):
        known |= set(dir(owner)) | set(getattr(owner, "__dataclass_fields__", {}))
    assert used <= known


def test_continuous_integration_runs_the_test_command() -> None:
    script = REPOSITORY / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "make test" in script.read_text(encoding="utf-8").splitlines()[-1]
