"""Plain PyTorch in fp16 or bf16 on a CPU: the control that half-precision stages are compared with.

A copy of the component with its weights in half precision runs as it would on a GPU: products,
convolutions and norms read half, add up in fp32 and round their result to half once. CPU kernels do
not (fp16 products are over a hundred times slower than fp32 and add up in fp16), so those operators
are caught, computed in fp32 and rounded.

Three things stay in fp32, as in every half-precision implementation of these models: RMS norms (a
square overflows fp16), whatever the geometry of the picture is computed from, and the choice of
proposals and instances, because a rounding error there would compare different boxes and say
nothing about the rest.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from visionllm_edge.export.components.geometry import Geometry, LevelGeometry
from visionllm_edge.export.components.llm_decoder import Llama
from visionllm_edge.export.components.object_decoder import ObjectDecoder, Proposals
from visionllm_edge.export.components.pose_decoder import PoseDecoder
from visionllm_edge.runtime.backends.base import PAST_PREFIX

__all__ = ["HALF_DTYPES", "run_in_half", "wide_kernels"]

HALF_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""Precision -> torch type."""

_LAYERS = (nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.Linear)
_aten = torch.ops.aten
# Computed in fp32 from half inputs, rounded once.
_WIDE = frozenset(
    {
        _aten.addmm,
        _aten.baddbmm,
        _aten.bmm,
        _aten.convolution,
        _aten.mm,
        _aten.native_group_norm,
        _aten.native_layer_norm,
        _aten._softmax,
    }
)


def run_in_half(
    module: nn.Module, inputs: Mapping[str, Tensor], precision: str
) -> tuple[Tensor, ...]:
    """Run a stage's component in half precision.

    Args:
        module: in fp32; not changed.
        inputs: as for fp32; the cache is rounded to half, as its buffers are.
        precision: a key of `HALF_DTYPES`.

    Returns:
        The outputs in fp32.
    """
    half = HALF_DTYPES[precision]
    control = _half_copy(module, half)
    for mine, original in zip(control.modules(), module.modules(), strict=True):
        if isinstance(mine, ObjectDecoder):
            assert isinstance(original, ObjectDecoder), "a copy has the same tree"
            # A plain attribute shadows the method of this one copy.
            mine.__dict__["propose"] = _propose_in_fp32(original)
        elif isinstance(mine, PoseDecoder):
            assert isinstance(original, PoseDecoder), "a copy has the same tree"
            mine.__dict__["instances"] = _instances_in_fp32(original)
        elif isinstance(mine, Llama):
            for norm in (n for n in mine.modules() if type(n).__name__ == "_RMSNorm"):
                _widen(norm, half)
        elif isinstance(mine, _LAYERS):
            # PyTorch compares the types of input and weight before an operator can be caught.
            mine.register_forward_pre_hook(_narrow)
    given = [
        tensor.to(half) if name.startswith(PAST_PREFIX) else tensor
        for name, tensor in inputs.items()
    ]
    with torch.no_grad(), _WideKernels(half):
        outputs = control(*given)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    return tuple(output.float() for output in outputs)


def _half_copy(module: nn.Module, half: torch.dtype) -> nn.Module:
    """A copy whose weights are in half precision, without one in fp32 on the way."""
    rounded: dict[int, Any] = {
        id(weight): nn.Parameter(weight.to(half), requires_grad=False)
        for weight in module.parameters()
        if weight.is_floating_point()
    }
    rounded |= {id(x): x.to(half) for x in module.buffers() if x.is_floating_point()}
    return copy.deepcopy(module, rounded).eval()


def wide_kernels(half: torch.dtype) -> TorchDispatchMode:
    """A context in which heavy operators on half tensors compute in fp32 and round once."""
    return _WideKernels(half)


def _propose_in_fp32(original: ObjectDecoder) -> Callable[..., Proposals]:
    def propose(memory: Tensor, text: Tensor, level: LevelGeometry) -> Proposals:
        return original.propose(memory.float(), text.float(), level)

    return propose


def _instances_in_fp32(original: PoseDecoder) -> Callable[..., tuple[Tensor, Tensor]]:
    """The box layers end in a choice, so all of them stay in fp32, as in a lowered graph."""

    def instances(
        memory: Tensor, text: Tensor, valid_size: Tensor, geometry: Geometry
    ) -> tuple[Tensor, Tensor]:
        return original.instances(memory.float(), text.float(), valid_size, geometry)

    return instances


def _narrow(layer: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    dtype = next(layer.parameters()).dtype
    return tuple(x.to(dtype) for x in given)


def _widen(norm: nn.Module, half: torch.dtype) -> None:
    def before(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(x.float() for x in given)

    def after(_: nn.Module, __: object, out: Tensor) -> Tensor:
        return out.to(half)

    norm.register_forward_pre_hook(before)
    norm.register_forward_hook(after)


class _WideKernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Catches the heavy operators wherever one of their inputs is in half precision."""

    def __init__(self, half: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._half = half

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in args if isinstance(x, Tensor)]
        caught = func.overloadpacket in _WIDE and any(x.dtype == self._half for x in tensors)
        if not caught:
            return func(*args, **kwargs)
        outputs = func(*(self._rounded(x) for x in args), **kwargs)
        if isinstance(outputs, Tensor):
            return outputs.to(self._half)
        return tuple(
            x.to(self._half) if isinstance(x, Tensor) and x.is_floating_point() else x
            for x in outputs
        )

    def _rounded(self, value: Any) -> Any:
        """What half precision holds of a float tensor, in fp32."""
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return value.to(self._half).float()
