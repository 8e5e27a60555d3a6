"""A model larger than the memory: each part of it is in memory while it is used.

The module tree is built without weights. Whoever asks the model, or one of its diffusion branches,
for a part by attribute (`model.gdino`, `model.sd.sd_unet`) gets it with the checkpoint's weights in
float32; `release` drops whatever was loaded. The language model is never loaded this way: its
decoder is built and run a layer at a time (`visionllm_edge.export.llm`).
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from visionllm_edge.export.build_stage import ModelPair, run_torch
from visionllm_edge.export.checkpoint import Checkpoint, load_model
from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.llm.hf_folder import VisionLLMWeights
from visionllm_edge.export.llm.streamed_states import StreamedLanguage
from visionllm_edge.export.official_layout import is_unused
from visionllm_edge.export.stages import Bucket, Stage
from visionllm_edge.export.stages.examples import Examples
from visionllm_edge.export.wide_run import in_float64

__all__ = ["StreamedModel", "StreamedPair", "open_model"]

WHOLE_WEIGHTS = 200_000_000
"""A model of up to so many weights is kept in memory in float32 and in float64: 2.4 GB."""

_LLM = "llm"
# Parts whose children are loaded one by one: a diffusion branch is several models.
_BRANCHES = ("sd", "ip2p")

Places = list[tuple[nn.Module, str]]


class StreamedModel:
    """Loads and releases the parts of one model.

    Attributes:
        model: the tree; its parts come into memory when they are asked for.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Build the tree; nothing is loaded.

        Args:
            checkpoint: whose keys were checked.
        """
        self._checkpoint = checkpoint
        self._loaded: dict[str, Places] = {}
        with _EmptyOnMeta():
            self.model = VisionLLM(checkpoint.config)
        self.model.eval()
        for owner in self.model.modules():
            for leaf, weight in owner._parameters.items():
                if weight is not None:
                    _put(owner, leaf, weight.to("meta"))
        for name in _BRANCHES:
            branch = self.model._modules.get(name)
            if branch is not None:
                _watch(branch, functools.partial(self._found, f"{name}."))
        _watch(self.model, functools.partial(self._found, ""))

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the parts that are in memory."""
        return tuple(sorted(self._loaded))

    def ready(self, module: nn.Module) -> nn.Module:
        """The module, with every weight that it can reach in memory."""
        for part in module.modules():
            if isinstance(part, _Watched):
                for name in (*part._modules, *part._parameters):
                    getattr(part, name)
        return module

    def release(self) -> None:
        """Forget the weights of all parts; they are read again when they are asked for."""
        for places in self._loaded.values():
            for owner, leaf in places:
                _put(owner, leaf, torch.empty_like(getattr(owner, leaf), device="meta"))
        self._loaded.clear()
        gc.collect()  # what was traced refers to weights in cycles

    def _found(self, prefix: str, child: str, value: object) -> object:
        """What asking a watched module for a child gives: the child, loaded."""
        name = prefix + child
        if name == _LLM:
            raise AssertionError("the language model of a streamed model is never in memory")
        if name in self._loaded or isinstance(value, _Watched):
            return value
        if isinstance(value, nn.Module):
            self._loaded[name] = list(self._load(name, value))
        elif isinstance(value, nn.Parameter):
            owner = self.model._modules[prefix.rstrip(".")] if prefix else self.model
            assert owner is not None, "whoever is asked is there"
            _put(owner, child, self._tensor(name, value))
            self._loaded[name] = [(owner, child)]
            return owner._parameters[child]
        return value

    def _load(self, name: str, part: nn.Module) -> Iterator[tuple[nn.Module, str]]:
        for path, owner in part.named_modules(prefix=name):
            stored = set(owner._buffers) - owner._non_persistent_buffers_set
            for leaf in (*owner._parameters, *stored):
                old = getattr(owner, leaf)
                if old is not None:
                    _put(owner, leaf, self._tensor(f"{path}.{leaf}", old))
                    yield owner, leaf

    def _tensor(self, name: str, old: Tensor) -> Tensor:
        """A tensor in the type that the tree has; zeros for one that nothing reads."""
        if is_unused(name):
            return torch.zeros(old.shape, dtype=old.dtype)
        return self._checkpoint.parameter(name).to(old.dtype, copy=True)


class StreamedPair(ModelPair):
    """A streamed model: one stage's parts in memory at a time, in float32 only.

    Args:
        checkpoint: whose keys were checked.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Build the tree; nothing is loaded."""
        self._parts = StreamedModel(checkpoint)
        self.model = self._parts.model
        self.examples = Examples(self.model, StreamedLanguage(VisionLLMWeights(checkpoint)))

    @property
    def whole(self) -> bool:
        """See `ModelPair`."""
        return False

    def module(self, stage: Stage, bucket: Bucket | None) -> nn.Module:
        """See `ModelPair`."""
        return self._parts.ready(super().module(stage, bucket))

    def run_true(
        self, stage: Stage, bucket: Bucket | None, inputs: Mapping[str, Tensor]
    ) -> tuple[Tensor, ...]:
        """See `ModelPair`."""
        module = self.module(stage, bucket)
        with in_float64(module):
            return run_torch(module, inputs)

    def release(self) -> None:
        """See `ModelPair`."""
        self._parts.release()


def open_model(checkpoint: Checkpoint) -> ModelPair:
    """The model in memory if it is small, else streamed.

    Raises:
        CheckpointError: copies of a tied tensor differ, or keys do not fit the configuration.
    """
    if checkpoint.weight_count() <= WHOLE_WEIGHTS:
        return ModelPair(load_model(checkpoint))
    checkpoint.check()
    checkpoint.refuse_untied()
    return StreamedPair(checkpoint)


class _Watched(nn.Module):
    """A module that tells when it is asked for one of its children."""

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        return self.__dict__["_found"](name, value)


def _watch(module: nn.Module, found: Callable[[str, object], object]) -> None:
    """Make a module a watched one; it stays an instance of its class."""
    module.__dict__["_found"] = found
    module.__class__ = type(f"Streamed{type(module).__name__}", (_Watched, type(module)), {})


def _put(owner: nn.Module, leaf: str, tensor: Tensor) -> None:
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[leaf] = tensor


class _EmptyOnMeta(TorchFunctionMode):
    """Large weights are made on the meta device; what is computed (tables, buffers) is real."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func in (torch.empty, torch.rand, torch.randn):
            given["device"] = "meta"
        return func(*args, **given)
