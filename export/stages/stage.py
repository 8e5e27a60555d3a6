"""What a stage is for the compiler: ports, module, example inputs, canonical graph.

A stage is one graph of the chain (one per size bucket where it has buckets). The table in
`visionllm_edge.export.stages` lists them; the driver treats all of them alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from torch import Tensor, nn

from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.config import VisionLLMConfig
from visionllm_edge.export.stages.examples import Case, Examples
from visionllm_edge.export.tracing import trace
from visionllm_edge.runtime.ports import Array, Port, StagePorts

__all__ = ["Bucket", "PortTable", "Stage", "fixed_ports"]

Bucket = tuple[int, int]


class Stage(ABC):
    """One entry of the stage table.

    Attributes:
        name: in the manifest.
        opset: default-domain opset of the canonical graph.
        bucketed: whether there is one graph per size bucket; see `bucket_list`.
        weight_prefixes: beginnings of the checkpoint keys that the stage's weights come from.
        sees_queries: whether its graph or its examples change with the number of queries.
        trace_case: sizes to trace at; every dynamic axis has length 2 or more.
        check_cases: other sizes to run and compare at; the shortest the runtime asks for is one.
    """

    name: ClassVar[str]
    opset: ClassVar[int]
    bucketed: ClassVar[bool] = False
    weight_prefixes: ClassVar[tuple[str, ...]]
    sees_queries: ClassVar[bool] = False
    trace_case: ClassVar[Case]
    check_cases: ClassVar[tuple[Case, ...]]

    def wanted(self, config: VisionLLMConfig) -> bool:
        """Whether a checkpoint with this config has the stage."""
        return True

    def bucket_list(self, config: VisionLLMConfig) -> list[Bucket | None]:
        """One entry per graph: the buckets of the object decoder, or None for a single graph."""
        return [*config.deployment.det_buckets] if self.bucketed else [None]

    @abstractmethod
    def ports(self, config: VisionLLMConfig) -> StagePorts:
        """Ends of the stage; a symbol is what differs per call or per bucket."""

    @abstractmethod
    def module(self, model: VisionLLM, bucket: Bucket | None) -> nn.Module:
        """The torch component, sharing the model's weights."""

    @abstractmethod
    def inputs(self, examples: Examples, bucket: Bucket | None, case: Case) -> dict[str, Tensor]:
        """Realistic inputs of one run."""

    def canonical(
        self, examples: Examples, bucket: Bucket | None, *, name: str, ports: StagePorts
    ) -> ir.Model:
        """The canonical graph of one variant: the module, traced.

        Args:
            examples: of the model.
            bucket: of the variant.
            name: of the graph, also used in errors.
            ports: of the variant.

        Raises:
            ExportError: torch cannot trace the module, or the graph's ends differ from the ports.
        """
        return trace(
            self.module(examples.model, bucket),
            self.inputs(examples, bucket, self.trace_case),
            name=name,
            inputs=ports.inputs,
            outputs=ports.outputs,
            opset=self.opset,
        )

    def bucket_sizes(self, config: VisionLLMConfig, bucket: Bucket) -> Mapping[str, int]:
        """What the symbols that belong to the bucket are; empty without buckets."""
        return {}

    def compared(self, outputs: Mapping[str, Array], case: Case) -> dict[str, Array]:
        """The part of the outputs that has a defined value."""
        return dict(outputs)


@dataclass(frozen=True)
class PortTable:
    """Ports written as `name: (dtype, axes...)`, for short stage files."""

    inputs: Mapping[str, tuple[str | int, ...]]
    outputs: Mapping[str, tuple[str | int, ...]]

    def ports(self, stage: str) -> StagePorts:
        """The same as ports."""
        return StagePorts(stage, _ports(self.inputs), _ports(self.outputs))


def _ports(table: Mapping[str, tuple[str | int, ...]]) -> tuple[Port, ...]:
    return tuple(Port(name, str(entry[0]), tuple(entry[1:])) for name, entry in table.items())


def fixed_ports(ports: StagePorts, sizes: Mapping[str, int]) -> StagePorts:
    """The ports of one bucket: symbols that the bucket settles become numbers."""

    def settle(port: Port) -> Port:
        shape = tuple(
            sizes.get(axis, axis) if isinstance(axis, str) else axis for axis in port.shape
        )
        return Port(port.name, port.dtype, shape)

    return StagePorts(
        ports.stage, tuple(map(settle, ports.inputs)), tuple(map(settle, ports.outputs))
    )
