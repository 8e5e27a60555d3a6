"""The parity gate of the language decoder, for a model of any size.

The truth is torch in float64 with the weights that the graph multiplies by, run layer by layer
(`visionllm_edge.export.llm.streamed`). A decoder in fp32 is compared by the ordinary rule. One with
quantised linears is compared twice: with every activation in float32 against the float32 control,
which says that the graph and its kernels are right, and as shipped, where activations are rounded
to int8 per block, against a control that rounds them in the same places. What that rounding does to
one tensor is noise with rare large values, so the control's error of an output is the largest of
all cases there, and the floor is that of eight bits.

A cache of int8 is one more thing that is rounded, with any weights: the twin has a cache in float32
then, and in the comparison of what is shipped rows of the cache count in steps. Of those half a
step is what rounding costs, and only what goes beyond it is noise. Two more rules see wrong scales:
`CacheSpread`, and `largest_cut_off` if graph and control share them.

What quantising the weights themselves costs is no matter of right or wrong; `docs/quantisation.md`
measures it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from visionllm_edge.export.build_stage import CaseParity
from visionllm_edge.export.config import LlmConfig
from visionllm_edge.export.llm.cache_steps import (
    CacheSpread,
    in_float,
    in_steps,
    largest_cut_off,
    ports_in_float,
)
from visionllm_edge.export.llm.decoder_graph import CacheScales
from visionllm_edge.export.llm.decoder_weights import DecoderWeights
from visionllm_edge.export.llm.streamed import (
    CONTROL,
    HALF,
    ROUNDED,
    TRUTH,
    Arithmetic,
    DecoderCase,
    StreamedRun,
    run_streamed,
)
from visionllm_edge.export.parity import (
    CONTROL_FACTOR,
    ROUNDED_FACTOR,
    TensorParity,
    compare_outputs,
    require_parity,
)
from visionllm_edge.export.passes.lower_quantized_linear import set_accuracy_level
from visionllm_edge.export.passes.widen_cache import widen_cache
from visionllm_edge.export.stages.examples import Case
from visionllm_edge.export.stages.llm_decoder import LlmDecoder
from visionllm_edge.runtime.backends import StageOptions, load_backend
from visionllm_edge.runtime.backends.base import PAST_PREFIX, PRESENT_PREFIX
from visionllm_edge.runtime.errors import ExportError
from visionllm_edge.runtime.ports import Array, StagePorts
from visionllm_edge.runtime.targets import find_target

__all__ = [
    "LARGE_WEIGHTS",
    "DecoderTruth",
    "GraphParity",
    "check_graph",
    "decoder_truth",
    "golden_arrays",
    "golden_limits",
    "parity_cases",
    "weight_count",
]

LARGE_WEIGHTS = 2_000_000_000
"""From this many weights on, fewer rows are compared: a row costs two operations per weight in
float64, and the rows of the full set take a 7B model an hour on two cores."""

_HALF_STEP = 0.5
_SEED = 20_240_608
_ROWS_SEED, _PREFIX_SEED = 3, 1
# A few steps, one token, a prompt into an empty cache: 28 rows and 12 before them.
_LARGE_CASES = (
    Case(rows=3, past=4, capacity=16, hidden=2, scored=2),
    Case(rows=1, past=8, capacity=16),
    Case(rows=24, past=0, capacity=24),
)

Note = Callable[[str], None]
Embed = Callable[[Array], Array]


@dataclass(frozen=True)
class DecoderTruth:
    """Cases, and what torch says about them.

    Attributes:
        cases: the steps.
        runs: one for each.
        eight_bits: whether the graph rounds to eight bits what it computes, in quantised linears
            or for its cache.
        cache_scales: of a cache of int8.
    """

    cases: tuple[Case, ...]
    runs: list[StreamedRun]
    eight_bits: bool = False
    cache_scales: CacheScales | None = None

    @property
    def control(self) -> Arithmetic:
        """What rounds where the graph does."""
        return ROUNDED if self.eight_bits else CONTROL

    def outputs(self, run: StreamedRun, kind: Arithmetic) -> dict[str, Array]:
        """What an arithmetic says the graph should give."""
        outputs = run.outputs[kind.name]
        return outputs if self.cache_scales is None else in_steps(outputs, self.cache_scales)

    def exact(self) -> DecoderTruth:
        """The same for the twin of the graph that does not round to eight bits."""
        runs = self.runs
        if self.cache_scales is not None:
            scales = self.cache_scales
            runs = [replace(run, inputs=in_float(run.inputs, scales)) for run in runs]
        return DecoderTruth(self.cases, runs)


@dataclass(frozen=True)
class GraphParity:
    """How a graph compares.

    Attributes:
        shipped: a report per case.
        exact: the same for its twin with activations and cache in floating point; empty where
            that is what is shipped.
        cut_off: share of keys or values that a cache of int8 cannot hold; see `largest_cut_off`.
        spread: mean error of its numbers over that of the control; see `CacheSpread`.
    """

    shipped: list[CaseParity]
    exact: list[CaseParity]
    cut_off: float = 0.0
    spread: float = 0.0


def parity_cases(config: LlmConfig) -> tuple[Case, ...]:
    """The steps that are compared: those of the stage, fewer rows for a large model."""
    cases: tuple[Case, ...] = (LlmDecoder.trace_case, *LlmDecoder.check_cases)
    if weight_count(config) >= LARGE_WEIGHTS:
        cases = _LARGE_CASES
    fitting = tuple(case for case in cases if case.capacity <= config.max_position_embeddings)
    if not fitting:
        raise ExportError(
            f"llm: a context of {config.max_position_embeddings} positions is shorter than every "
            f"step that is compared; expected at least {min(case.capacity for case in cases)}."
        )
    return fitting


def decoder_truth(
    weights: DecoderWeights,
    config: LlmConfig,
    embed: Embed,
    *,
    quantized: bool,
    cache: str,
    cache_scales: CacheScales | None = None,
    halves: bool = True,
    note: Note = lambda text: None,
) -> DecoderTruth:
    """Run truth and controls.

    Args:
        weights: that the graph multiplies by.
        config: sizes.
        embed: token ids int64 [s] -> rows of the embedding table [s,D], float32.
        quantized: whether linears round their activations.
        cache: type of the cache's buffers.
        cache_scales: of a cache of int8, for each layer.
        halves: run the first case in fp16 and bf16 too, for the limits of other targets.
        note: gets a line per layer.
    """
    cases = parity_cases(config)
    eight_bits = quantized or cache_scales is not None
    arithmetics = [TRUTH, CONTROL, *([ROUNDED] if eight_bits else [])]
    runs = run_streamed(
        weights,
        config,
        [_decoder_case(case, config, embed) for case in cases],
        arithmetics,
        first_only=list(HALF.values()) if halves else [],
        cache=cache,
        cache_scales=cache_scales,
        note=note,
    )
    return DecoderTruth(cases, runs, eight_bits, cache_scales)


def check_graph(
    path: Path,
    ports: StagePorts,
    truth: DecoderTruth,
    *,
    target: str,
    scratch: Path | None = None,
) -> GraphParity:
    """Run a lowered graph on every case and compare every output.

    Args:
        path: the graph.
        ports: its ends.
        truth: of its weights.
        target: name of the target.
        scratch: an empty folder for the twin of a graph that rounds to eight bits; beside the graph
            if not given.

    Raises:
        ExportError: it does not run.
        ParityError: an output is wrong, or the ranges of a cache of int8 are.
    """
    cut_off = 0.0
    if truth.cache_scales is not None:
        cut_off = largest_cut_off(ports.stage, truth.runs, truth.cache_scales)
    exact: list[CaseParity] = []
    if truth.eight_bits:
        with _exact_twin(path, scratch) as twin:
            exact, _ = _compare(twin, ports_in_float(ports), truth.exact(), target)
    shipped, spread = _compare(path, ports, truth, target)
    return GraphParity(shipped, exact, cut_off, spread)


def golden_limits(truth: DecoderTruth) -> dict[str, dict[str, float]]:
    """Largest error allowed per precision and output of the first case."""
    reports = []
    for run in truth.runs:
        control = truth.outputs(run, truth.control)
        true = truth.outputs(run, TRUTH)
        floor = _floor(truth.control, "fp32")
        reports.append(compare_outputs(control, true, control, precision=floor))
    limits = {"fp32": {tensor.name: tensor.limit for tensor in _pooled(reports, truth)[0]}}
    first = truth.runs[0]
    for precision, kind in HALF.items():
        half = truth.outputs(first, kind)
        report = compare_outputs(half, truth.outputs(first, TRUTH), half, precision=precision)
        limits[precision] = {tensor.name: tensor.limit for tensor in report}
    return limits


def golden_arrays(truth: DecoderTruth) -> dict[str, Array]:
    """Content of the golden file: inputs and true outputs of the first case, floats in float32."""
    run = truth.runs[0]
    arrays = {f"in.{name}": array for name, array in run.inputs.items()}
    arrays |= {f"out.{name}": array for name, array in truth.outputs(run, TRUTH).items()}
    return {
        name: array.astype(np.float32) if np.issubdtype(array.dtype, np.floating) else array
        for name, array in arrays.items()
    }


def weight_count(config: LlmConfig) -> int:
    """Weights that a decode step reads: all matrices of the layers, and the head."""
    heads = config.num_attention_heads + config.num_key_value_heads
    layer = 2 * heads * config.head_dim * config.hidden_size
    layer += 3 * config.hidden_size * config.intermediate_size
    return config.num_hidden_layers * layer + config.vocab_size * config.hidden_size


def _decoder_case(case: Case, config: LlmConfig, embed: Embed) -> DecoderCase:
    def rows(count: int, seed: int) -> Array:
        rng = np.random.default_rng((_SEED, seed))
        return embed(rng.integers(3, config.vocab_size, count))

    return DecoderCase(
        rows(case.rows, _ROWS_SEED),
        rows(case.past, _PREFIX_SEED),
        case.capacity,
        tuple(range(case.rows - case.hidden, case.rows)),
        tuple(range(case.hidden - case.scored, case.hidden)),
    )


@contextlib.contextmanager
def _exact_twin(path: Path, scratch: Path | None) -> Iterator[Path]:
    """The same graph that rounds nothing to eight bits, on the same weights file."""
    model = ir.load(path)
    set_accuracy_level(model, 1)
    widen_cache(model)
    folder = scratch or path.parent
    if scratch is not None:
        # ONNX Runtime reads weights only out of the graph's own folder, and follows no links there.
        for name in _weight_files(model):
            try:
                os.link(path.parent / name, scratch / name)
            except OSError:  # another file system
                shutil.copyfile(path.parent / name, scratch / name)
    twin = folder / f"{path.stem}.exact.onnx"
    try:
        ir.save(model, twin)
        yield twin
    finally:
        twin.unlink(missing_ok=True)


def _weight_files(model: ir.Model) -> set[str]:
    tensors = (value.const_value for value in model.graph.initializers.values())
    return {str(t.location) for t in tensors if isinstance(t, ir.ExternalTensor)}


def _compare(
    path: Path, ports: StagePorts, truth: DecoderTruth, target: str
) -> tuple[list[CaseParity], float]:
    """A report per case, and the spread of a cache of int8."""
    row = find_target(target)
    runner = load_backend(row.backend).load_stage(
        path, ports, StageOptions(threads=torch.get_num_threads())
    )
    reports: list[list[TensorParity]] = []
    spread = CacheSpread()
    for case, run in zip(truth.cases, truth.runs, strict=True):
        # The graph may write into the buffers of the cache that it is given.
        inputs = {
            name: array.copy() if name.startswith(PAST_PREFIX) else array
            for name, array in run.inputs.items()
        }
        try:
            outputs = runner.run(inputs)
        except Exception as e:
            raise ExportError(f"stage '{ports.stage}': does not run at {case}: {e}") from e
        ours = {name: _defined(name, array, run.valid) for name, array in outputs.items()}
        true, control = truth.outputs(run, TRUTH), truth.outputs(run, truth.control)
        floor = _floor(truth.control, row.precision)
        reports.append(compare_outputs(ours, true, control, precision=floor))
        if truth.cache_scales is not None:
            spread.add(int(run.inputs["past_length"][0]), ours, true, control)
    reports = _pooled(reports, truth)
    for report in reports:
        require_parity(ports.stage, report)
    found = 0.0 if truth.cache_scales is None else spread.require(ports.stage)
    return [
        CaseParity(None, case, report) for case, report in zip(truth.cases, reports, strict=True)
    ], found


def _floor(control: Arithmetic, precision: str) -> str:
    """The precision whose floor counts."""
    return "int8" if control.eight_bits else precision


def _pooled(reports: list[list[TensorParity]], truth: DecoderTruth) -> list[list[TensorParity]]:
    """Where the control rounds on the way, its error of an output is that of its worst case.

    Activations in int8 or a cache in float16 fall on the other side of a half for differences far
    below float32's. The error is then noise, and one step's largest value (one row of hidden
    states) says little about the next one's.
    """
    half_cache = any(array.dtype == np.float16 for array in truth.runs[0].inputs.values())
    if not truth.eight_bits and not half_cache:
        return reports
    factor = ROUNDED_FACTOR if truth.eight_bits else CONTROL_FACTOR
    worst: dict[str, float] = {}
    for tensor in (tensor for report in reports for tensor in report):
        worst[tensor.name] = max(worst.get(tensor.name, 0.0), tensor.control)

    def pooled(tensor: TensorParity) -> TensorParity:
        most = worst[tensor.name]
        steps = truth.cache_scales is not None and tensor.name.startswith(PRESENT_PREFIX)
        whole = _HALF_STEP if steps else 0.0  # what rounding itself may cost
        more = whole + factor * max(most - whole, 0.0) - CONTROL_FACTOR * tensor.control
        return replace(tensor, control=most, limit=tensor.limit + more)

    return [[pooled(tensor) for tensor in report] for report in reports]


def _defined(name: str, array: Array, valid: int) -> Array:
    """The part of an output that has a defined value, as a copy: the runner owns its buffers."""
    return np.array(array[:, :, :valid] if name.startswith(PRESENT_PREFIX) else array)
