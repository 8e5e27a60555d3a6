"""The 7B decoder's engines, built (``python -m visionllm_edge.benchmarks.real_decoder``).

Two layers at the released widths, with the head and the whole context, random weights: enough to
see that every form is taken at its real size, and what it costs. Each form (weights in fp16, 8 and
4 bits; cache by TensorScatter, ScatterND and Concat, or in bytes) is built with TensorRT-RTX, which
needs no GPU, with its two profiles. What this cannot show is how fast an engine runs.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from visionllm_edge.benchmarks.environment import describe_environment
from visionllm_edge.benchmarks.report import write_report
from visionllm_edge.runtime.engines.plan import NodeForm, StagePlan
from visionllm_edge.runtime.engines.profiles import Axes, profiles_for
from visionllm_edge.runtime.errors import EdgeError

if TYPE_CHECKING:
    from visionllm_edge.export.config import LlmConfig
    from visionllm_edge.export.llm.decoder_weights import BlockLinear, DenseLinear
    from visionllm_edge.export.quantize.matrix import BlockQuantized

__all__ = ["FORMS", "DecoderForm", "RandomWeights", "build_decoder_engine", "released_decoder"]

LAYERS = 2
_PACKAGES = ("visionllm-edge", "onnx", "onnxruntime", "tensorrt-rtx")
_TARGET = "rtx-ada"
_PROMPT, _STEP = 704, 65
_SEED = 7


@dataclass(frozen=True)
class DecoderForm:
    """One way to lower the decoder.

    Attributes:
        bits: of the weights; 0 for dense ones.
        block: weights that share a scale.
        cache: form of the attention; `inline` has its cache in bytes.
        precision: of everything else.
    """

    bits: int
    block: int
    cache: str
    precision: str

    @property
    def name(self) -> str:
        """As in ``int4-128.tensor_scatter.fp16``."""
        weights = f"int{self.bits}-{self.block}" if self.bits else "dense"
        return f"{weights}.{self.cache}.{self.precision}"


FORMS = (
    DecoderForm(4, 128, "tensor_scatter", "fp16"),
    DecoderForm(4, 128, "cached_attention", "fp16"),
    DecoderForm(4, 128, "concat", "fp16"),
    DecoderForm(4, 128, "tensor_scatter", "bf16"),
    DecoderForm(4, 32, "tensor_scatter", "fp16"),
    DecoderForm(4, 128, "inline", "fp16"),
    DecoderForm(8, 128, "tensor_scatter", "fp16"),
    DecoderForm(0, 0, "tensor_scatter", "fp16"),
)


def released_decoder(*, layers: int = LAYERS) -> LlmConfig:
    """Sizes of the released 7B decoder (Vicuna), with fewer layers."""
    from visionllm_edge.export.config import LlmConfig

    return LlmConfig(
        vocab_size=32026,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=32,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        max_position_embeddings=4096,
    )


class RandomWeights:
    """Random weights of a form: a builder does not look at them."""

    def __init__(self, config: LlmConfig, form: DecoderForm) -> None:
        """Nothing is made yet."""
        from visionllm_edge.export.llm.decoder_weights import DenseWeights, StateDict

        self._config, self._form = config, form
        self._shapes = DenseWeights(StateDict(config, {}))
        self._rng = np.random.default_rng(_SEED)

    def norm(self, name: str) -> NDArray[np.float32]:
        """Ones."""
        return np.ones(self._config.hidden_size, np.float32)

    def linear(self, names: tuple[str, ...]) -> DenseLinear | BlockLinear:
        """Normal numbers, or any bytes with one scale."""
        from visionllm_edge.export.llm.decoder_weights import BlockLinear
        from visionllm_edge.export.quantize.matrix import BlockQuantized

        shape, bits, block = self._shapes.linear(names), self._form.bits, self._form.block
        if not bits:
            size = shape.columns, shape.rows
            return replace(
                shape, load=lambda: self._rng.standard_normal(size, np.float32) * np.float32(0.02)
            )
        blocks = shape.columns // block

        def load() -> BlockQuantized:
            packed = (shape.rows, blocks, block * bits // 8)
            return BlockQuantized(
                self._rng.integers(0, 256, packed, np.uint8),
                np.full((shape.rows, blocks), 0.002, np.float16),
                bits,
                block,
            )

        return BlockLinear(shape.rows, shape.columns, bits, block, False, load)


def build_decoder_engine(
    config: LlmConfig, form: DecoderForm, folder: Path, *, target: str = _TARGET
) -> dict[str, Any]:
    """Write the graph of one form and build its engine.

    Args:
        config: sizes.
        form: how to lower it.
        folder: empty; for graph, weights, log and engine.
        target: what to lower for. An engine of another release than the one that is here is built
            for `rtx-ada` all the same: the graph is what is tried.

    Raises:
        EdgeError: it is not lowered or not built.
    """
    import onnx_ir as ir

    from visionllm_edge.export.llm.decoder_graph import decoder_graph
    from visionllm_edge.export.lowering import lower
    from visionllm_edge.export.passes.share_weights import WeightFile
    from visionllm_edge.runtime.engines.build import run_build
    from visionllm_edge.runtime.engines.request import BuildRequest
    from visionllm_edge.runtime.targets import find_target

    started = time.monotonic()
    row, rows = find_target(target), config.max_position_embeddings
    builder = row if row.backend == "tensorrt_rtx" else find_target(_TARGET)
    weights = RandomWeights(config, form)
    model = (
        decoder_graph(config, weights, cache="int8", cache_scales=_cache_scales(config))
        if form.cache == "inline"
        else decoder_graph(config, weights)
    )
    prefer = {"CachedAttention": form.cache}
    forms = lower(model, row, precision=form.precision, prefer=prefer, capacity=rows)
    shapes = {
        value.name or "": [a if isinstance(a, int) else str(a.value) for a in value.shape or ()]
        for value in model.graph.inputs
    }
    with WeightFile(folder / "decoder.weights") as file:
        file.take(model)
        ir.save(model, folder / "decoder.onnx")
    written_s = time.monotonic() - started
    plan = StagePlan(
        stage="llm_decoder",
        graph="decoder.onnx",
        engine="decoder.engine",
        precision=form.precision,
        profiles=profiles_for("llm_decoder", shapes, _ranges(rows)),
        forms=tuple(NodeForm(**entry.to_dict()) for entry in forms),
    )
    answer = run_build(
        BuildRequest(
            plan=plan,
            root=str(folder),
            backend=builder.backend,
            sm=builder.sm,
            log=str(folder / "log"),
            engine=str(folder / plan.engine),
            plugins="none",
        )
    )
    return {
        "form": form.name,
        "backend": f"tensorrt_rtx {answer.version}",
        "profiles": [profile.use for profile in plan.profiles],
        "opset": model.graph.opset_imports[""],
        "forms": sorted({f"{entry.op}: {entry.form}" for entry in forms}),
        "graph_bytes": (folder / "decoder.weights").stat().st_size,
        "engine_bytes": answer.engine_bytes,
        "layers": answer.layers,
        "write_s": round(written_s, 2),
        "parse_s": round(answer.parse_s, 2),
        "build_s": round(answer.build_s, 2),
        "peak_rss_bytes": answer.peak_rss_bytes,
    }


def _cache_scales(config: LlmConfig) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    scales = np.full((config.num_key_value_heads, config.head_dim), 0.02, np.float32)
    return [(scales, scales)] * config.num_hidden_layers


def _ranges(rows: int) -> dict[str, Axes]:
    prompt, step = min(_PROMPT, rows), min(_STEP, rows)
    shared = {"C": (rows, rows, rows), "l": (1, 1, step)}
    return {
        "prefill": {**shared, "s": (1, prompt, rows), "r": (1, 1, rows)},
        "decode": {**shared, "s": (1, 1, step), "r": (1, 1, step)},
    }


def _build_all(forms: Sequence[DecoderForm]) -> Iterator[dict[str, Any]]:
    config = released_decoder()
    for form in forms:
        click.echo(f"{form.name}: write and build", err=True)
        with tempfile.TemporaryDirectory(prefix="visionllm-edge-") as folder:
            yield build_decoder_engine(config, form, Path(folder))


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['form']:<34} graph {row['graph_bytes'] / 1e6:7.1f} MB  "
        f"engine {row['engine_bytes'] / 1e6:7.1f} MB  write {row['write_s']:5.1f} s  "
        f"parse {row['parse_s']:4.1f} s  build {row['build_s']:5.1f} s  "
        f"{row['peak_rss_bytes'] / 1e9:.1f} GB"
    )


@click.command()
@click.option(
    "--form", "names", multiple=True, type=click.Choice([f.name for f in FORMS]), help="Only these."
)
@click.option("--out", type=click.Path(path_type=Path), help="File for the results as JSON.")
def main(names: tuple[str, ...], out: Path | None) -> None:
    """Build two layers of the 7B decoder in every form, with random weights."""
    rows = []
    try:
        for row in _build_all([form for form in FORMS if not names or form.name in names]):
            rows.append(row)
            click.echo(_line(row))
    except EdgeError as error:
        raise click.ClickException(str(error)) from error
    if out is not None:
        content = {
            "environment": describe_environment(_PACKAGES),
            "layers": LAYERS,
            "rows": rows,
        }
        write_report(out, content)
        click.echo(f"results: {out}")


if __name__ == "__main__":
    main()
