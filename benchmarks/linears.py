"""The linear layers of a decoder alone: our kernel and ONNX Runtime's MatMulNBits, in turns.

Run as ``python -m visionllm_edge.benchmarks.linears``. The shapes are TinyLlama-1.1B's: per layer
q|k|v, o, gate|up and down, and an 8-bit head; random weights, together larger than any cache of the
core, in huge pages where the system gives them. Both contestants are the same ONNX model at
accuracy level 4: with the library of CPU kernels registered, and with the function that holds
MatMulNBits. With one thread the process's own CPU time is reported beside the wall clock: on a
machine that others use it is the steadier of the two.
"""

from __future__ import annotations

import json
import mmap
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import onnxruntime as ort

from visionllm_edge.benchmarks.environment import describe_environment
from visionllm_edge.benchmarks.operator_forms import required_kernels
from visionllm_edge.plugins.cpu.library import instruction_set
from visionllm_edge.plugins.quantized_linear.spec import QUANTIZED_LINEAR
from visionllm_edge.plugins.semantic_op import DOMAIN
from visionllm_edge.runtime.errors import PluginError
from visionllm_edge.runtime.ports import Array

if TYPE_CHECKING:
    import onnx

__all__ = ["Linears", "compare", "make_linears"]

_HIDDEN, _QKV, _FFN, _VOCABULARY = 2048, 2560, 5632, 32000
_HUGE_PAGE_BYTES = 2 << 20
_MAX_FEW_ROWS = 16


class Linears:
    """A chain of linear layers as an ONNX model, and its weights.

    Args:
        block_size: G.
    """

    def __init__(self, block_size: int) -> None:
        """Start an empty chain at the graph's input ``x``."""
        self.block_size = block_size
        self.weights: dict[str, Array] = {}
        self.products = 0
        self._nodes: list[onnx.NodeProto] = []
        self._noise = np.random.default_rng(0).integers(0, 256, 1 << 20, dtype=np.uint8)
        self._end, self._width = "x", _HIDDEN

    @property
    def weight_bytes(self) -> int:
        """Size of numbers and scales."""
        return sum(array.nbytes for array in self.weights.values())

    def add(self, inputs: int, outputs: int, *, bits: int = 4) -> None:
        """Append a layer that takes the first ``inputs`` columns of the one before."""
        from onnx import helper

        name = f"linear{len(self.weights)}"
        if inputs != self._width:
            cut = helper.make_node("Split", [self._end], [f"{name}_x", f"{name}_rest"], axis=-1)
            parts = helper.make_node(
                "Constant", [], [f"{name}_parts"], value_ints=[inputs, self._width - inputs]
            )
            cut.input.append(f"{name}_parts")
            self._nodes += [parts, cut]
            self._end = f"{name}_x"
        blocks = inputs // self.block_size
        weight = _huge((outputs, blocks, self.block_size * bits // 8), np.uint8)
        weight.reshape(-1)[:] = np.resize(self._noise, weight.size)
        scales = _huge((outputs, blocks), np.float16)
        scales[:] = 1 / 64
        self.weights |= {f"{name}_weight": weight, f"{name}_scales": scales}
        sizes: dict[str, Any] = {
            "K": inputs,
            "N": outputs,
            "bits": bits,
            "block_size": self.block_size,
        }
        ports = [self._end, f"{name}_weight", f"{name}_scales"]
        self._nodes.append(
            helper.make_node(
                QUANTIZED_LINEAR.name, ports, [name], domain=DOMAIN, accuracy_level=4, **sizes
            )
        )
        self.products += inputs * outputs
        self._end, self._width = name, outputs

    def session(self, folder: Path, threads: int, library: Path | None) -> ort.InferenceSession:
        """Open the chain with the kernels, or without them as MatMulNBits."""
        from onnx import TensorProto, helper

        (folder / "weights").touch()  # ONNX Runtime wants the file to be there; it reads none of it
        kinds = {np.dtype(np.uint8): TensorProto.UINT8, np.dtype(np.float16): TensorProto.FLOAT16}
        initializers = []
        for name, array in self.weights.items():
            proto = TensorProto(name=name, data_type=kinds[array.dtype], dims=array.shape)
            proto.data_location = TensorProto.EXTERNAL
            entry = proto.external_data.add()
            entry.key, entry.value = "location", "weights"
            initializers.append(proto)
        graph = helper.make_graph(
            self._nodes,
            "linears",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, None, _HIDDEN])],
            [helper.make_tensor_value_info(self._end, TensorProto.FLOAT, [1, None, self._width])],
            initializers,
        )
        domains = ("", 21), (DOMAIN, 1), ("com.microsoft", 1)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(*domain) for domain in domains],
            functions=[QUANTIZED_LINEAR.onnx_function(opset=21, contrib=True)],
            ir_version=10,
        )
        path = folder / "linears.onnx"
        path.write_bytes(model.SerializeToString())
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.force_spinning_stop", "1")
        values = {n: ort.OrtValue.ortvalue_from_numpy(a) for n, a in self.weights.items()}
        if library is None:
            # Repacked, and therefore copied.
            options.add_external_initializers(list(values), list(values.values()))
        else:
            options.register_custom_ops_library(str(library))
            for name, value in values.items():
                options.add_initializer(name, value)
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def make_linears(layers: int, block_size: int, *, head: bool = True) -> Linears:
    """The layers of a TinyLlama-1.1B of so many layers."""
    linears = Linears(block_size)
    for _ in range(layers):
        linears.add(_HIDDEN, _QKV)
        linears.add(_HIDDEN, _HIDDEN)
        linears.add(_HIDDEN, 2 * _FFN)
        linears.add(_FFN, _HIDDEN)
    if head:
        linears.add(_HIDDEN, _VOCABULARY, bits=8)
    return linears


def compare(
    linears: Linears, library: Path, *, rows: int, rounds: int, threads: int
) -> dict[str, dict[str, float]]:
    """Time both forms in turns; per form the medians and what they mean.

    Args:
        linears: the chain.
        library: the CPU kernels.
        rows: tokens of a step.
        rounds: measured rounds; one more comes before.
        threads: for both.
    """
    x = {"x": np.random.default_rng(1).standard_normal((1, rows, _HIDDEN), dtype=np.float32)}
    x["x"] *= np.float32(1e-3)
    with tempfile.TemporaryDirectory() as folder:
        sessions = {
            "kernel": linears.session(Path(folder), threads, library),
            "MatMulNBits": linears.session(Path(folder), threads, None),
        }
        wall: dict[str, list[float]] = {name: [] for name in sessions}
        own: dict[str, list[float]] = {name: [] for name in sessions}
        for measured in [False] + [True] * rounds:
            for name, session in sessions.items():
                start, start_own = time.perf_counter(), time.process_time()
                session.run(None, x)
                stop, stop_own = time.perf_counter(), time.process_time()
                if measured:
                    wall[name].append(stop - start)
                    own[name].append(stop_own - start_own)
    return {
        name: {
            "median_ms": 1e3 * (seconds := statistics.median(wall[name])),
            "median_cpu_ms": 1e3 * statistics.median(own[name]),
            "weights_gb_per_s": linears.weight_bytes / seconds / 1e9,
            "tera_operations_per_s": 2 * linears.products * rows / seconds / 1e12,
            "tokens_per_s": rows / seconds,
        }
        for name in sessions
    }


def _huge(shape: tuple[int, ...], dtype: type) -> Array:
    """An array in memory that asks for huge pages."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, size + _HUGE_PAGE_BYTES, flags=flags)
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is not None:
        memory.madvise(advice)
    raw = np.frombuffer(memory, dtype=np.uint8)
    start = -raw.ctypes.data % _HUGE_PAGE_BYTES
    array: Array = raw[start : start + size].view(dtype).reshape(shape)
    return array


@click.command()
@click.option("--rows", multiple=True, type=click.IntRange(1), default=(1, 2, 5, 65, 512))
@click.option("--layers", type=click.IntRange(1), default=22, help="Of 24.7 MB each at block 32.")
@click.option("--block", type=click.Choice(["32", "64", "128"]), default="32")
@click.option("--rounds", type=click.IntRange(1), default=10, help="Fewer with many rows.")
@click.option("--threads", type=click.IntRange(1), default=2)
@click.option("--head/--no-head", default=True, help="With the 8-bit head.")
def main(
    rows: tuple[int, ...], layers: int, block: str, rounds: int, threads: int, head: bool
) -> None:
    """Time the linear layers of a decoder, as our kernel and as MatMulNBits."""
    try:
        library = required_kernels()
    except PluginError as e:
        raise click.ClickException(str(e)) from e
    linears = make_linears(layers, int(block), head=head)
    report: dict[str, object] = {
        "environment": describe_environment(("onnxruntime", "numpy"), threads=threads),
        "kernels": instruction_set(library),
        "weight_bytes": linears.weight_bytes,
        "block_size": int(block),
        "layers": layers,
    }
    for count in rows:
        some = rounds if count <= _MAX_FEW_ROWS else max(rounds // 4, 1)
        times = compare(linears, library, rows=count, rounds=some, threads=threads)
        report[f"{count} rows"] = times
        for name, values in times.items():
            text = ", ".join(f"{key} {value:.2f}" for key, value in values.items())
            click.echo(f"{count:>4} rows  {name:<12} {text}")
    click.echo(json.dumps(report))


if __name__ == "__main__":
    main()
