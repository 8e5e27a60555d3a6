"""The stages of a bundle that are in int8, replaced by the control of their gate.

Between the torch model and a bundle with int8 stages stands this chain: torch, but for those
stages, which are fake-quantised by the rule of the gate. It tells how far such rounding alone moves
boxes.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping

import numpy as np

from visionllm_edge.export.canonical import load_canonical
from visionllm_edge.export.graph_session import GraphSession
from visionllm_edge.export.quantized_control import quantized_control
from visionllm_edge.runtime.backends.base import KVCache, StageRunner
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.errors import BackendError
from visionllm_edge.runtime.pipelines.stages import Stages
from visionllm_edge.runtime.ports import Array, StagePorts, Tensor
from visionllm_edge.runtime.targets import QUANTIZED

__all__ = ["RoundedStages", "rounded_stages"]

Bucket = tuple[int, int]


def rounded_stages(bundle: Bundle) -> dict[str, str]:
    """Stage -> precision, of those that round activations to eight bits."""
    precisions = {
        name: str(spec.parity.get("precision", bundle.manifest.target.precision))
        for name, spec in bundle.manifest.stages.items()
    }
    return {name: precision for name, precision in precisions.items() if precision in QUANTIZED}


class RoundedStages:
    """Stages of a bundle by their controls; implements the runtime's `Stages`. A context manager.

    Args:
        bundle: with canonical graphs.
        others: gives every stage that is not in eight bits.
    """

    def __init__(self, bundle: Bundle, others: Stages) -> None:
        """Load nothing yet."""
        self._bundle, self._others = bundle, others
        self._precisions = rounded_stages(bundle)
        self._made: dict[tuple[str, Bucket | None], StageRunner] = {}
        self._open = contextlib.ExitStack()

    def __enter__(self) -> RoundedStages:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close what was loaded."""
        self._open.close()

    def get(self, name: str, bucket: Bucket | None = None) -> StageRunner:
        """A stage by name and bucket."""
        if name not in self._precisions:
            return self._others.get(name, bucket)
        spec = self._bundle.manifest.stages[name]
        key = (name, None if spec.variants[0].bucket is None else bucket)
        if key not in self._made:
            model = load_canonical(self._bundle, name, key[1])
            graph = quantized_control(model, self._precisions[name], by_row=True)
            session = self._open.enter_context(GraphSession(graph))
            self._made[key] = _RoundedStage(session, spec.ports(name))
        return self._made[key]


@dataclasses.dataclass(frozen=True)
class _RoundedStage:
    """One control; implements `StageRunner`."""

    session: GraphSession
    ports: StagePorts

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Array]:
        return self.session.run(
            {port.name: np.asarray(inputs[port.name]) for port in self.ports.inputs}
        )

    def run_kept(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {**self.run(inputs)}

    def new_cache(self, capacity: int) -> KVCache:
        raise BackendError(
            f"stage '{self.ports.stage}': expected a stage with a cache, it has none"
        )

    def run_with_cache(self, inputs: Mapping[str, Tensor], cache: KVCache) -> dict[str, Array]:
        raise BackendError(
            f"stage '{self.ports.stage}': expected a stage with a cache, it has none"
        )
