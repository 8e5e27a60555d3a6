"""``visionllm-edge plugins``: what forms the operators have, and the C++ library for TensorRT."""

from __future__ import annotations

import json
from pathlib import Path

import click

from visionllm_edge.plugins.registry import SEMANTIC_OPS
from visionllm_edge.plugins.semantic_op import SemanticOp
from visionllm_edge.plugins.tensorrt_glue.library import LibraryError, build_library

__all__ = ["plugins"]

_FOLDER = Path(__file__).resolve().parent
# Form of an operator -> the file in its folder that makes it.
_FORMS = {
    "onnx function": "onnx_function.py",
    "cpu kernel": "cpu_kernel.h",
    "cuda kernel": "kernel.cuh",
    "tensorrt c++ plugin": "tensorrt_plugin.cpp",
    "tensorrt python plugin": "cuda.py",
}


@click.group()
def plugins() -> None:
    """List the operators' forms, or build their TensorRT library."""


@plugins.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_(as_json: bool) -> None:
    """Show every operator: its forms, its types and where its kernels are."""
    described = {name: _describe(op) for name, op in SEMANTIC_OPS.items()}
    if as_json:
        click.echo(json.dumps(described, indent=1))
        return
    for op in SEMANTIC_OPS.values():
        forms = {form: file for form, file in _FORMS.items() if (_folder(op) / file).is_file()}
        click.echo(f"{op.name}: {op.summary}")
        for side, ports in (("in", op.inputs), ("out", op.outputs)):
            for port in ports:
                shape = ", ".join(str(axis) for axis in port.shape)
                types = " | ".join(dict.fromkeys(port.dtypes))
                click.echo(f"  {side:<6} {port.name} [{shape}] {types}")
        for form, file in forms.items():
            click.echo(f"  form   {form}: {_folder(op) / file}")
        click.echo()


@plugins.command()
@click.option(
    "--tensorrt-include",
    "include",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of the TensorRT SDK's headers (NvInferRuntime.h).",
)
@click.option(
    "-o",
    "--output",
    default="libvisionllm_plugins.so",
    show_default=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Library to write.",
)
@click.option(
    "--sm",
    "sms",
    multiple=True,
    type=int,
    help="Compute capability, 87 for 8.7; may be repeated. All known ones if not given.",
)
@click.option("--op", "ops", multiple=True, help="Operator; may be repeated. All if not given.")
def build(include: Path, output: Path, sms: tuple[int, ...], ops: tuple[str, ...]) -> None:
    """Build the operators' TensorRT plugins into a shared library, with nvcc."""
    try:
        built = build_library(include=include, output=output, sms=sms or None, ops=ops or None)
    except LibraryError as error:
        raise click.ClickException(str(error)) from error
    click.echo(
        f"{built.path}: {built.size_bytes / 2**20:.1f} MiB, TensorRT {built.tensorrt} headers, "
        f"{', '.join(f'sm_{sm}' for sm in built.sms)}, {', '.join(built.ops)}"
    )


def _describe(op: SemanticOp) -> dict[str, object]:
    return {
        "summary": op.summary,
        "inputs": {port.name: list(port.shape) for port in op.inputs},
        "outputs": {port.name: list(port.shape) for port in op.outputs},
        "type_combinations": [list(combination) for combination in op.type_combinations],
        "forms": {
            form: str(_folder(op) / file)
            for form, file in _FORMS.items()
            if (_folder(op) / file).is_file()
        },
    }


def _folder(op: SemanticOp) -> Path:
    return _FOLDER / op.module.rpartition(".")[2]
