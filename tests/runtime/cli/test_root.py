"""The root command: lazy loading, errors, exit codes."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from visionllm_edge.runtime import cli
from visionllm_edge.runtime.cli import COMMANDS, LazyCommand, main
from visionllm_edge.runtime.errors import InputError


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command ``fail`` that raises what its argument says."""

    @click.command()
    @click.argument("how")
    def fail(how: str) -> None:
        if how == "edge":
            raise InputError("image: expected a picture, got a sandwich. Eat it.")
        if how == "torch":
            raise ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn")
        if how == "own":
            raise ModuleNotFoundError("No module named 'typo'", name="typo")
        logging.getLogger("visionllm_edge.x").info("a step is done")
        click.echo("result")

    monkeypatch.setattr(cli, "failing", fail, raising=False)
    monkeypatch.setitem(COMMANDS, "fail", LazyCommand("runtime.cli:failing", "Fail."))
    yield


def test_help_lists_every_command_with_one_sentence() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    for name, entry in COMMANDS.items():
        assert name in result.stdout
        assert entry.help.endswith(".") and entry.help.count(".") == 1


def test_help_loads_no_command_and_no_exporter() -> None:
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from visionllm_edge.runtime.cli import main\n"
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0\n"
        "bad = {'torch', 'onnx', 'transformers', 'visionllm_edge.export',"
        " 'visionllm_edge.benchmarks', 'visionllm_edge.runtime.cli.run'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("name", ["run", "chat", "inspect"])
def test_runtime_commands_help_without_the_exporter(name: str) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'transformers', 'onnxscript', 'onnx_ir'):\n"
        "    sys.modules[name] = None\n"
        "from visionllm_edge.runtime.cli import main\n"
        f"main([{name!r}, '--help'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=120, capture_output=True, text=True
    )
    assert "Usage:" in done.stdout and done.stderr == ""


def test_an_error_of_ours_is_one_message_and_exit_code_1(command: None) -> None:
    result = CliRunner().invoke(main, ["fail", "edge"])
    assert result.exit_code == 1
    assert result.stderr == "Error: image: expected a picture, got a sandwich. Eat it.\n"
    assert result.stdout == ""


def test_debug_shows_the_traceback(command: None) -> None:
    result = CliRunner().invoke(main, ["--debug", "fail", "edge"])
    assert result.exit_code == 1
    assert isinstance(result.exception, InputError)


def test_a_missing_extra_prints_the_install_line(command: None) -> None:
    result = CliRunner().invoke(main, ["fail", "torch"])
    assert result.exit_code == 1
    assert "pip install 'visionllm-edge[export]'" in result.stderr


def test_a_missing_module_of_our_own_is_not_hidden(command: None) -> None:
    result = CliRunner().invoke(main, ["fail", "own"])
    assert isinstance(result.exception, ModuleNotFoundError)


def test_logs_go_to_stderr_and_results_to_stdout(command: None) -> None:
    result = CliRunner().invoke(main, ["fail", "no"])
    assert (result.stdout, result.stderr) == ("result\n", "a step is done\n")


@pytest.mark.parametrize("arguments", [["nope"], ["run"], ["fail"], ["--nope"]])
def test_wrong_usage_is_exit_code_2(command: None, arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert result.stdout == ""


def test_version() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert result.exit_code == 0 and "visionllm-edge" in result.stdout
