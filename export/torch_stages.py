"""The torch model behind the runtime's stage interface: the same pipeline, run by PyTorch.

What a bundle answers can so be compared with what the checkpoint answers, word for word and box for
box, through one and the same pre- and post-processing.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.stages import STAGES, Bucket
from visionllm_edge.runtime.backends.base import PAST_PREFIX, PRESENT_PREFIX, KVCache, StageRunner
from visionllm_edge.runtime.errors import BundleError
from visionllm_edge.runtime.ports import Array, StagePorts, bind_inputs
from visionllm_edge.runtime.ports import Tensor as StageTensor

__all__ = ["TorchStages"]


class TorchStages:
    """Stages of a model; implements the runtime's `Stages`."""

    def __init__(self, model: VisionLLM) -> None:
        """Take a model in eval mode."""
        self._model = model
        self._made: dict[tuple[str, Bucket | None], StageRunner] = {}

    def get(self, name: str, bucket: Bucket | None = None) -> StageRunner:
        """A stage by name and bucket.

        Raises:
            BundleError: no such stage.
        """
        stage = next((stage for stage in STAGES if stage.name == name), None)
        if stage is None:
            raise BundleError(f"torch model: no stage {name!r}")
        key = (name, bucket if stage.bucketed else None)
        if key not in self._made:
            module = stage.module(self._model, key[1])
            self._made[key] = _TorchStage(module, stage.ports(self._model.config))
        return self._made[key]


class _TorchCache:
    """Key and value buffers as tensors."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    @property
    def capacity(self) -> int:
        return int(next(iter(self.tensors.values())).shape[2])

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def array(self, name: str) -> Array:
        array: Array = self.tensors[name].numpy()
        return array


class _TorchStage:
    """One component; implements `StageRunner`."""

    def __init__(self, module: nn.Module, ports: StagePorts) -> None:
        self._module, self._ports = module, ports

    @property
    def ports(self) -> StagePorts:
        return self._ports

    def run(self, inputs: Mapping[str, StageTensor]) -> dict[str, Array]:
        bind_inputs(self._ports.stage, self._ports.inputs, inputs, {})
        tensors = [torch.from_numpy(np.asarray(inputs[port.name])) for port in self._ports.inputs]
        return {name: tensor.numpy() for name, tensor in self._call(tensors).items()}

    def run_kept(self, inputs: Mapping[str, StageTensor]) -> dict[str, StageTensor]:
        return {**self.run(inputs)}

    def new_cache(self, capacity: int) -> KVCache:
        tensors = {}
        for port in self._ports.inputs:
            if port.name.startswith(PAST_PREFIX):
                shape = [capacity if isinstance(axis, str) else axis for axis in port.shape]
                tensors[port.name] = torch.zeros(shape)
        return _TorchCache(tensors)

    def run_with_cache(self, inputs: Mapping[str, StageTensor], cache: KVCache) -> dict[str, Array]:
        assert isinstance(cache, _TorchCache), "a cache belongs to the stage that made it"
        tensors = [
            cache.tensors[port.name]
            if port.name in cache.tensors
            else torch.from_numpy(np.asarray(inputs[port.name]))
            for port in self._ports.inputs
        ]
        outputs = self._call(tensors)
        for name in cache.tensors:
            cache.tensors[name] = outputs.pop(PRESENT_PREFIX + name.removeprefix(PAST_PREFIX))
        return {name: tensor.numpy() for name, tensor in outputs.items()}

    def _call(self, tensors: list[Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            outputs = self._module(*tensors)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        return {
            port.name: tensor.contiguous()
            for port, tensor in zip(self._ports.outputs, outputs, strict=True)
        }
