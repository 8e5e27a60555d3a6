"""The command line's root: ``visionllm-edge COMMAND``.

It knows every command by dotted name and loads a command's module when it is called, so that a
device without the exporter starts, helps and runs. Results go to stdout, everything else to stderr.
Exit codes: 0 done, 1 an error that was said in one message, 2 wrong usage.
"""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass
from typing import Any

import click

from visionllm_edge.runtime.errors import EdgeError

__all__ = ["COMMANDS", "main"]


@dataclass(frozen=True)
class LazyCommand:
    """Where a command lives (``module:attribute``) and its help, known without loading it."""

    target: str
    help: str


_PACKAGE = "visionllm_edge"
COMMANDS = {
    "compile": LazyCommand("export.cli:compile_", "Compile a checkpoint into a bundle."),
    "demo": LazyCommand("export.cli:demo", "Compile the tiny checkpoint and try it on a picture."),
    "verify": LazyCommand("export.cli:verify", "Check a bundle's files and its parity again."),
    "targets": LazyCommand("runtime.cli.targets:targets", "List what can be compiled for."),
    "explain": LazyCommand("export.cli_explain:explain", "Show the plan of a build, unbuilt."),
    "build": LazyCommand("export.cli_build:build", "Build the engines of a bundle for a target."),
    "kit": LazyCommand("runtime.cli.kit:kit", "Build engines on a device without the exporter."),
    "inspect": LazyCommand("runtime.cli.inspect:inspect", "Show what a bundle holds."),
    "run": LazyCommand("runtime.cli.run:run", "Ask a bundle about a picture, or in words."),
    "chat": LazyCommand("runtime.cli.chat:chat", "Talk with a bundle."),
    "plugins": LazyCommand(
        "plugins.cli:plugins", "List the operators' forms, build their library."
    ),
    "doctor": LazyCommand(
        "runtime.cli.doctor:doctor", "Show what this machine has and what it can build."
    ),
    "bench": LazyCommand("benchmarks.cli_bench:bench", "Measure the speed of a bundle's parts."),
    "eval": LazyCommand("benchmarks.cli:eval_", "Measure a bundle on freshly made pictures."),
    "gallery": LazyCommand("benchmarks.cli_gallery:gallery", "Draw an answer for every task."),
}
# Extra of the package by the top-level module that it brings.
_EXTRAS = {
    **dict.fromkeys(
        ("onnx", "onnx_ir", "onnxscript", "safetensors", "sentencepiece", "torch", "transformers"),
        "export",
    ),
    "pycocotools": "bench",
    "scipy": "train",
}


class RootGroup(click.Group):
    """Loads commands on demand and turns the package's errors into one message and exit code 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the workflow."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command's module."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].target.partition(":")
        command = getattr(importlib.import_module(f"{_PACKAGE}.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help) for name, command in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; errors become a message unless ``--debug`` asks for the traceback."""
        try:
            return super().invoke(ctx)
        except EdgeError as error:
            if ctx.params.get("debug"):
                raise
            message = str(error)
        except ModuleNotFoundError as error:
            extra = _EXTRAS.get((error.name or "").partition(".")[0])
            if extra is None or ctx.params.get("debug"):
                raise
            message = (
                f"this command needs '{error.name}', which is not installed. "
                f"Install it: pip install 'visionllm-edge[{extra}]'"
            )
        click.echo(f"Error: {message}", err=True)
        ctx.exit(1)


class _EchoHandler(logging.Handler):
    """Log lines to wherever stderr points at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        click.echo(self.format(record), err=True)


@click.group(cls=RootGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="visionllm-edge", prog_name="visionllm-edge")
@click.option("--debug", is_flag=True, help="Show tracebacks and detailed logs.")
def main(debug: bool) -> None:
    """Compile VisionLLM checkpoints for a device and run the result."""
    logger = logging.getLogger(_PACKAGE)
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    if not any(isinstance(handler, _EchoHandler) for handler in logger.handlers):
        logger.addHandler(_EchoHandler())
