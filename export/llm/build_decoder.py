"""Stage `llm_decoder` from stored weights to a folder, without the model ever in memory.

Quantise (where asked for), build the canonical graph, lower it, write the weights, and compare with
torch. Everything goes matrix by matrix, so the peak is a few matrices whatever the size of the
model. The folder gets what every stage's folder gets (`visionllm_edge.export.build_stage`).

Quantising is the long part. Its results lie in a work folder that outlives an interruption, and the
next build of the same stage goes on from there.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visionllm_edge.export.build_stage import (
    STAGE_FILE,
    parity_summary,
    save_graph,
)
from visionllm_edge.export.llm.decoder_graph import CacheScales, decoder_graph, decoder_ports
from visionllm_edge.export.llm.decoder_parity import (
    LARGE_WEIGHTS,
    DecoderTruth,
    Embed,
    GraphParity,
    check_graph,
    decoder_truth,
    golden_arrays,
    golden_limits,
    weight_count,
)
from visionllm_edge.export.llm.decoder_plan import DecoderPlan
from visionllm_edge.export.llm.decoder_weights import DecoderWeights, DenseWeights
from visionllm_edge.export.llm.streamed import CONTROL, ROUNDED
from visionllm_edge.export.llm.weights import EMBEDDING, LlmWeights
from visionllm_edge.export.lowering import lower
from visionllm_edge.export.parity import FLOORS, MOST_CUT_OFF, ROUNDED_FACTOR, SPREAD_FACTOR
from visionllm_edge.export.passes.share_weights import WeightFile
from visionllm_edge.export.quantize.cache_scales import measure_cache_scales
from visionllm_edge.export.quantize.quantize_llm import quantize_llm, weights_key
from visionllm_edge.runtime.memory import available_bytes
from visionllm_edge.runtime.ports import Array
from visionllm_edge.runtime.targets import find_target

__all__ = ["DECODER", "build_decoder", "embed_rows"]

DECODER = "llm_decoder"

_SILENT_S = 5.0
# Memory that a session takes beside its weights, as a share of them; and layers that stand for all
# where the weights do not fit.
_RUN_SHARE = 1.25
_SHALLOW_LAYERS = 2

Note = Callable[[str], None]


def build_decoder(
    plan: DecoderPlan,
    folder: Path,
    *,
    work: Path,
    target: str,
    note: Note = lambda text: None,
) -> None:
    """Fill a folder with the stage; see the module.

    Args:
        plan: what to build.
        folder: empty.
        work: for quantised layers; whoever gave it removes it when the stage is complete.
        target: name of the target.
        note: gets a line per layer and step.

    Raises:
        EdgeError: unreadable weights, a graph that cannot be lowered or run, or one that computes
            something else than torch.
    """
    source, precision = plan.source, plan.precision
    config = source.config
    calibration = None if plan.calibration is None else plan.calibration()
    weights: DecoderWeights = DenseWeights(source)
    if precision.quantized:
        weights = quantize_llm(source, precision, work, calibration=calibration, progress=note)
    scales: CacheScales | None = None
    if precision.cache == "int8":
        assert calibration is not None, "a plan with a cache of int8 has a calibration"
        key = weights_key(source, precision, calibration)
        scales = measure_cache_scales(weights, config, calibration, work, source=key, progress=note)
    del calibration
    (folder / "stages").mkdir()
    (folder / "golden").mkdir()
    graph, canonical = f"stages/{DECODER}.onnx", f"stages/{DECODER}.canonical.onnx"
    started = time.monotonic()
    with WeightFile(folder / "stages" / f"{DECODER}.weights") as file:
        model = decoder_graph(config, weights, cache=precision.cache, cache_scales=scales)
        save_graph(DECODER, model, folder / canonical, file)
        lowering = [node.to_dict() for node in lower(model, find_target(target))]
        save_graph(DECODER, model, folder / graph, file)
    note(f"{DECODER}: graph and weights written, {time.monotonic() - started:.1f} s")
    truth = decoder_truth(
        weights,
        config,
        embed_rows(source, half=precision.quantized),
        quantized=precision.quantized,
        cache=precision.cache,
        cache_scales=scales,
        note=_seldom(note),
    )
    ports = decoder_ports(config, cache=precision.cache)
    parity, extent = _compare(plan, weights, folder / graph, truth, target, note)
    golden = _write_golden(folder, truth)
    content = {
        "inputs": [port.to_dict() for port in ports.inputs],
        "outputs": [port.to_dict() for port in ports.outputs],
        "variants": [{"bucket": None, "model": graph, "canonical": canonical}],
        "lowering": {graph: lowering},
        "parity": _summary(parity, plan, target) | extent | {"golden": golden},
    }
    text = json.dumps(content, indent=1, allow_nan=False)
    (folder / STAGE_FILE).write_text(text, encoding="utf-8")
    note(f"{DECODER}: {len(parity.shipped)} steps compared with torch")


def embed_rows(source: LlmWeights, *, half: bool) -> Embed:
    """Rows of the embedding table as the bundle holds it, in float16 or float32."""
    table = source.tensor(EMBEDDING)

    def embed(ids: Array) -> Array:
        rows = table[torch.from_numpy(ids)].float()
        array: Array = (rows.half().float() if half else rows).numpy()
        return array

    return embed


def _seldom(note: Note) -> Note:
    """Passes a line on if the last one is some seconds old: layers of a small model fly by."""
    last = time.monotonic()

    def passed(text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= _SILENT_S:
            last = time.monotonic()
            note(text)

    return passed


def _compare(
    plan: DecoderPlan,
    weights: DecoderWeights,
    graph: Path,
    truth: DecoderTruth,
    target: str,
    note: Note,
) -> tuple[GraphParity, dict[str, Any]]:
    """Run the graph against the truth; where it does not fit into memory, its first layers.

    Returns:
        The comparison, and how much was compared.
    """
    config, precision = plan.source.config, plan.precision
    ports = decoder_ports(config, cache=precision.cache)
    extent: dict[str, Any] = {"compared_rows": sum(case.rows for case in truth.cases)}
    if weight_count(config) >= LARGE_WEIGHTS:
        extent["compared_rows_note"] = "a large model: fewer rows than for a small one"
    needed, free = graph.with_name(f"{DECODER}.weights").stat().st_size, available_bytes()
    if free is None or needed * _RUN_SHARE <= free:
        return check_graph(graph, ports, truth, target=target), extent
    shallow = dataclasses.replace(
        config, num_hidden_layers=min(_SHALLOW_LAYERS, config.num_hidden_layers)
    )
    scales = truth.cache_scales and truth.cache_scales[: shallow.num_hidden_layers]
    said = (
        f"the first {shallow.num_hidden_layers} of {config.num_hidden_layers} layers and the head "
        f"were compared: all need {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free"
    )
    note(f"{DECODER}: {said}")
    with tempfile.TemporaryDirectory(prefix="shallow-", dir=graph.parent) as scratch:
        part = Path(scratch) / graph.name
        with WeightFile(part.with_suffix(".weights")) as file:
            model = decoder_graph(shallow, weights, cache=precision.cache, cache_scales=scales)
            file.take(model)
            lower(model, find_target(target))
            save_graph(DECODER, model, part, file)
        check = check_graph(
            part,
            decoder_ports(shallow, cache=precision.cache),
            decoder_truth(
                weights,
                shallow,
                embed_rows(plan.source, half=precision.quantized),
                quantized=precision.quantized,
                cache=precision.cache,
                cache_scales=scales,
                halves=False,
            ),
            target=target,
        )
    return check, extent | {"compared_layers_note": said}


def _write_golden(folder: Path, truth: DecoderTruth) -> dict[str, Any]:
    relative = f"golden/{DECODER}.npz"
    np.savez_compressed(folder / relative, **golden_arrays(truth))  # type: ignore[arg-type]
    return {
        "file": relative,
        "bucket": None,
        "case": asdict(truth.cases[0]),
        "limits": golden_limits(truth),
    }


def _summary(parity: GraphParity, plan: DecoderPlan, target: str) -> dict[str, Any]:
    precision = find_target(target).precision  # of what is not weights
    summary = parity_summary(parity.shipped, precision)
    chosen = plan.precision
    if not chosen.rounds:
        return summary
    weights = "the dequantised weights" if chosen.quantized else "the same weights"
    truth = {"truth": f"torch float64 with {weights}"}
    exact = parity_summary(parity.exact, precision) | truth | {"control": f"torch {CONTROL.name}"}
    rule = f"error <= {ROUNDED_FACTOR:g} x control of the worst step + {FLOORS['int8']:g} x scale"
    rounded: dict[str, Any] = {"rule": rule, "exact_activations": exact}
    eight = [ROUNDED.name] if chosen.quantized else []
    if chosen.cache == "int8":
        eight.append("int8 cache")
        rounded["rule"] += "; of the cache in steps, half a step and 4 x what control has beyond it"
        rounded |= {"cache_cut_off": parity.cut_off, "cache_cut_off_limit": MOST_CUT_OFF}
        rounded |= {"cache_spread": parity.spread, "cache_spread_limit": SPREAD_FACTOR}
    return summary | truth | rounded | {"control": f"torch {CONTROL.name}, {', '.join(eight)}"}
