"""Run a float32 module in float64 without a second copy of its weights.

Inside the block every function that meets a float64 tensor or a weight of the module computes in
float64: its float32 operands are widened for the length of the call. A module that is too large to
be copied (a U-Net of 860 million weights is 6.9 GB in float64) so gives the same truth as its
`.double()` copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

__all__ = ["in_float64"]


def in_float64(module: nn.Module) -> TorchFunctionMode:
    """A context in which a module computes in float64 from float64 inputs.

    Args:
        module: with float32 weights, which stay as they are.
    """
    return _Widen(module)


class _Widen(TorchFunctionMode):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._weights = {
            tensor.untyped_storage().data_ptr()
            for tensor in (*module.parameters(), *module.buffers())
            if tensor.dtype == torch.float32
        }

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "__get__":
            # An attribute of a weight; what asks for its type is about to compute in it.
            narrow = args and isinstance(args[0], Tensor) and self._is_weight(args[0])
            return torch.float64 if narrow and func == _DTYPE else func(*args, **kwargs)
        if _writes(name):
            return func(*args, **kwargs)  # what is written to keeps its type
        leaves, spec = pytree.tree_flatten((args, kwargs))
        if any(isinstance(x, Tensor) and self._is_wide(x) for x in leaves):
            args, kwargs = pytree.tree_unflatten([_widened(x) for x in leaves], spec)
        return func(*args, **kwargs)

    def _is_wide(self, tensor: Tensor) -> bool:
        return tensor.dtype == torch.float64 or self._is_weight(tensor)

    def _is_weight(self, tensor: Tensor) -> bool:
        if tensor.dtype != torch.float32:
            return False
        return tensor.untyped_storage().data_ptr() in self._weights


_DTYPE = Tensor.dtype.__get__  # type: ignore[attr-defined]
_IN_PLACE = frozenset(
    f"__{name}__"
    for name in ("setitem", "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow")
)


def _writes(name: str) -> bool:
    """Whether a function of this name changes its first operand."""
    return name in _IN_PLACE if name.startswith("__") else name.endswith("_")


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype == torch.float32:
        return value.double()
    return value
