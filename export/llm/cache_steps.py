"""A cache of int8 beside torch: in steps, in float32, and whether its ranges hold what torch sees.

What a graph writes are whole numbers of steps, so that is what torch's rows are compared in: the
truth as fractions of a step, cut where a whole number ends. A device that checks an engine then
needs no scales.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.export.llm.decoder_graph import CacheScales
from visionllm_edge.export.llm.streamed import TRUTH, StreamedRun
from visionllm_edge.export.parity import MOST_CUT_OFF, SPREAD_FACTOR
from visionllm_edge.runtime.backends.base import PAST_PREFIX, PRESENT_PREFIX
from visionllm_edge.runtime.errors import ParityError
from visionllm_edge.runtime.ports import Array, Port, StagePorts

__all__ = ["CacheSpread", "in_float", "in_steps", "largest_cut_off", "ports_in_float"]

_LARGEST = 127.0
_KINDS = ("key", "value")


def in_steps(outputs: Mapping[str, Array], scales: CacheScales) -> dict[str, Array]:
    """Outputs of a streamed run as the graph gives them: rows of the cache as numbers of steps."""
    return {
        name: np.clip(_float(array) / _steps(name, PRESENT_PREFIX, scales), -_LARGEST, _LARGEST)
        if name.startswith(PRESENT_PREFIX)
        else array
        for name, array in outputs.items()
    }


def in_float(inputs: Mapping[str, Array], scales: CacheScales) -> dict[str, Array]:
    """Inputs of a step for the graph whose cache is in float32."""
    return {
        name: array.astype(np.float32) * _steps(name, PAST_PREFIX, scales)
        if name.startswith(PAST_PREFIX)
        else array
        for name, array in inputs.items()
    }


def ports_in_float(ports: StagePorts) -> StagePorts:
    """The ends of that graph."""

    def wide(port: Port) -> Port:
        return Port(port.name, "float32", port.shape) if port.dtype == "int8" else port

    return StagePorts(ports.stage, tuple(map(wide, ports.inputs)), tuple(map(wide, ports.outputs)))


def largest_cut_off(stage: str, runs: Iterable[StreamedRun], scales: CacheScales) -> float:
    """The largest share of a layer's keys or values that its ranges cannot hold.

    The scales are the one thing that graph and control share, so nothing else would see it if they
    were wrong.

    Raises:
        ParityError: it is more than `MOST_CUT_OFF`.
    """
    lost = np.zeros((len(scales), len(_KINDS)))
    whole = np.zeros_like(lost)
    for run in runs:
        start = int(run.inputs["past_length"][0])
        for place in np.ndindex(*lost.shape):
            name = f"{PRESENT_PREFIX}{place[0]}.{_KINDS[place[1]]}"
            rows = _float(run.outputs[TRUTH.name][name][:, :, start:])
            steps = _steps(name, PRESENT_PREFIX, scales)
            beyond = np.maximum(np.abs(rows) - steps * _LARGEST, 0)
            lost[place] += np.square(beyond).sum()
            whole[place] += np.square(rows).sum()
    shares = np.sqrt(lost / np.maximum(whole, np.finfo(np.float64).tiny))
    layer, kind = np.unravel_index(int(shares.argmax()), shares.shape)
    worst = float(shares[layer, kind])
    if not worst <= MOST_CUT_OFF:
        raise ParityError(
            f"stage '{stage}': cache of int8: expected the ranges of the calibration to hold the "
            f"{_KINDS[kind]}s of layer {layer}, got {worst:.0%} of their length beyond them "
            f"(allowed {MOST_CUT_OFF:.0%}). Name a text like what the model will read with "
            "--calibration-text, or choose --llm-cache float16. Nothing was published."
        )
    return worst


class CacheSpread:
    """Root mean square errors of new rows in steps, over all cases.

    Behind some layers the largest error is several steps, and a limit on it hides scales that are
    off by a tenth. Their mean is the same for two right implementations, whatever each value is.
    """

    def __init__(self) -> None:
        """Nothing is seen yet."""
        self._sums: dict[str, tuple[float, float]] = {}

    def add(
        self,
        start: int,
        ours: Mapping[str, Array],
        true: Mapping[str, Array],
        control: Mapping[str, Array],
    ) -> None:
        """Take the rows of a case from `start` on; all of them in steps."""
        for name in true:
            if not name.startswith(PRESENT_PREFIX):
                continue
            rows, *others = (_float(part[name])[:, :, start:] for part in (true, ours, control))
            before = self._sums.get(name, (0.0, 0.0))
            own, plain = (
                was + float(np.square(other - rows).sum())
                for was, other in zip(before, others, strict=True)
            )
            self._sums[name] = own, plain

    def require(self, stage: str) -> float:
        """The largest error over that of the control.

        Raises:
            ParityError: it is more than `SPREAD_FACTOR`.
        """
        shares = {name: _root_of(own, plain) for name, (own, plain) in self._sums.items()}
        name = max(shares, key=lambda one: shares[one])
        if not shares[name] <= SPREAD_FACTOR:
            raise ParityError(
                f"stage '{stage}': output '{name}' is wrong: the mean error of the cache's whole "
                f"numbers is {shares[name]:.3g} times that of torch with the same rounding, "
                f"expected at most {SPREAD_FACTOR:g}. Nothing was published."
            )
        return shares[name]


def _root_of(own: float, plain: float) -> float:
    if plain > 0:
        return float(np.sqrt(own / plain))
    return 1.0 if own == 0 else float("inf")


def _steps(name: str, prefix: str, scales: CacheScales) -> NDArray[np.float32]:
    """Scales of a cache's end, to be multiplied with [1,KV,C,Dh]."""
    layer, kind = name.removeprefix(prefix).split(".")
    return scales[int(layer)][_KINDS.index(kind)][None, :, None]


def _float(array: Array) -> NDArray[np.float64]:
    return np.asarray(array, np.float64)
