"""One vision stage of the released model with random weights: graphs, inputs, torch's answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.benchmarks.real_size import RELEASED_BUCKET, released_config
from visionllm_edge.runtime.ports import StagePorts

if TYPE_CHECKING:
    from torch import Tensor, nn

    from visionllm_edge.export.build_stage import ModelPair
    from visionllm_edge.export.stages import Stage

__all__ = ["STAGES", "PreparedStage", "prepare_stage", "prepare_stages"]

STAGES = ("vision_encoder", "det_backbone", "det_encoder", "det_decoder", "det_masks")
"""Of the model, in the order of the chain.

The decoder takes the best proposals as queries, in their order. Its memory is made so that their
scores are apart by far more than fp32 rounds; a contestant that rounds scores to bf16 or int8 picks
other proposals, and random weights give a query of another rank another answer.
"""

_TARGET = "cpu"
_FORMS = {"lowered": "fp32", "int8": "int8", "plain": "fp32"}
_SEED = 5


@dataclass(frozen=True)
class PreparedStage:
    """A stage that every contestant can run.

    Attributes:
        name: of the stage.
        module: the torch component, fp32.
        inputs: by port.
        truth: torch's outputs in fp32, by port.
        ports: of the stage.
        lowered: our graph for the CPU, in fp32.
        int8: the same with its linear layers in eight bits.
        plain: the same without our operators' kernels: standard operators only.
    """

    name: str
    module: nn.Module
    inputs: Mapping[str, Tensor]
    truth: Mapping[str, NDArray[np.generic]]
    ports: StagePorts
    lowered: Path
    int8: Path
    plain: Path

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """The inputs as numpy."""
        return {name: tensor.numpy() for name, tensor in self.inputs.items()}


def prepare_stages(folder: Path, names: tuple[str, ...]) -> list[PreparedStage]:
    """Make the random model, trace, lower and save the stages, and run torch once.

    Raises:
        ExportError: a stage cannot be traced or lowered.
    """
    import torch

    from visionllm_edge.export.build_stage import ModelPair
    from visionllm_edge.export.components.model import VisionLLM
    from visionllm_edge.export.config import config_from_dict
    from visionllm_edge.export.stages import STAGES as TABLE

    torch.manual_seed(_SEED)
    model = VisionLLM(config_from_dict(released_config(), name="released")).eval()
    pair = ModelPair(model)
    folder.mkdir(parents=True)
    return [
        prepare_stage(pair, stage, folder, RELEASED_BUCKET if stage.bucketed else None)
        for stage in TABLE
        if stage.name in names
    ]


def prepare_stage(
    pair: ModelPair, stage: Stage, folder: Path, bucket: tuple[int, int] | None
) -> PreparedStage:
    """Trace, lower and save one stage of a model, and run torch once.

    Args:
        pair: the model.
        stage: an entry of the table of stages.
        folder: gets the graphs and their weights.
        bucket: (height, width) of a stage that has size buckets.

    Raises:
        ExportError: the stage cannot be traced or lowered.
    """
    import onnx_ir as ir
    import torch

    from visionllm_edge.export.build_stage import canonical_graph, variant_ports
    from visionllm_edge.export.lowering import lower
    from visionllm_edge.export.passes.inline_functions import inline_functions
    from visionllm_edge.export.passes.share_weights import WeightFile
    from visionllm_edge.runtime.targets import find_target

    ports = variant_ports(pair, stage, bucket)
    inputs = stage.inputs(pair.examples, bucket, replace(stage.trace_case, tiles=1))
    module = stage.module(pair.model, bucket)
    with torch.no_grad():
        outputs = module(*inputs.values())
    outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
    paths = {form: folder / f"{stage.name}.{form}.onnx" for form in _FORMS}
    canonical = canonical_graph(pair, stage, bucket)
    for form, path in paths.items():
        model = canonical.clone()
        if form != "plain":
            lower(model, find_target(_TARGET), precision=_FORMS[form])
        else:
            inline_functions(model, {node.op_type for node in model.graph})
        with WeightFile(folder / f"{stage.name}.{form}.weights") as weights:
            weights.take(model)
            ir.save(model, path)
    return PreparedStage(
        name=stage.name,
        module=module,
        inputs=inputs,
        truth={
            port.name: tensor.numpy() for port, tensor in zip(ports.outputs, outputs, strict=True)
        },
        ports=ports,
        **paths,
    )
