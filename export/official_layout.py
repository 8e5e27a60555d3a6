"""The names of the official checkpoint: every key with its shape, copies of tied tensors included.

What the components hold is asked of their structure on the meta device. The official files hold
more, all of it known: copies of one tensor under several names, tensors that take no part in
inference, and integer buffers that are computed anew.

Source: VisionLLM v2 (arXiv 2406.08394) and its released checkpoint's key list.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from visionllm_edge.export.components.model import meta_model
from visionllm_edge.export.config import VisionLLMConfig

__all__ = [
    "PARTS",
    "canonical_name",
    "is_old_buffer",
    "is_unused",
    "official_shapes",
    "tied_sources",
]

Shape = tuple[int, ...]

PARTS = ("region_encoder.", "unipose.", "sd.", "ip2p.")
"""Parts that a configuration may switch off; the weights of such a part are not read."""

_BIAS_TABLE, _INDEX = "relative_position_bias_table", "relative_position_index"
# Tensors that take no part in inference, and buffers that older versions of transformers stored.
_UNUSED = ("vis_encoder.vision_model.post_layernorm.", "gdino.model.mask_embed.")
_OLD_BUFFERS = ("rotary_emb.inv_freq", "embeddings.position_ids")


@dataclass(frozen=True)
class _TiedHead:
    """A head that all layers of a decoder share, stored once per layer.

    Attributes:
        part: the decoder's prefix.
        name: of the module list.
        places: where in the part the list stands.
        fewer: by how many it is shorter than the decoder.
    """

    part: str
    name: str
    places: tuple[str, ...]
    fewer: int = 0


_HEADS = (
    _TiedHead("gdino.", "bbox_embed", ("", "model.decoder.")),
    _TiedHead("gdino.", "mask_embed", ("",)),
    _TiedHead("unipose.", "bbox_embed", ("", "transformer.decoder.")),
    _TiedHead("unipose.", "pose_embed", ("", "transformer.decoder."), 1),
    _TiedHead("unipose.", "pose_hw_embed", ("", "transformer.decoder."), 2),
)


def canonical_name(name: str, tied: Mapping[str, str] | None = None) -> str:
    """The one name of a tied tensor.

    Args:
        name: of a stored tensor, or of one of a component.
        tied: beginnings of names whose tensors are those under another beginning.

    Returns:
        Heads as ``bbox_embed.0``, ``mask_embed.0``, ``pose_embed.0`` and ``pose_hw_embed.0`` of
        their part; tied beginnings replaced; every other name as it is.
    """
    for target, source in (tied or {}).items():
        if name.startswith(target):
            name = source + name[len(target) :]
            break
    for head in _HEADS:
        for place in head.places:
            start = f"{head.part}{place}{head.name}."
            if name.startswith(start):
                index, _, rest = name[len(start) :].partition(".")
                if index.isdigit():
                    return f"{head.part}{head.name}.0.{rest}"
    return name


def tied_sources(prefix: str, tied: Mapping[str, str]) -> tuple[str, ...]:
    """Beginnings of canonical names that the tensors under a prefix may have."""
    out = [prefix]
    for target, source in tied.items():
        if prefix.startswith(target):
            out.append(source + prefix[len(target) :])
        elif target.startswith(prefix):
            out.append(source)
    return tuple(out)


def is_unused(name: str) -> bool:
    """Whether a tensor takes no part in inference, or is computed anew."""
    return name.startswith(_UNUSED) or name.endswith(_INDEX) or is_old_buffer(name)


def is_old_buffer(name: str) -> bool:
    """Whether a tensor is one that older versions of transformers stored beside the weights."""
    return name.endswith(_OLD_BUFFERS)


def official_shapes(config: VisionLLMConfig) -> dict[str, Shape]:
    """Every key that a checkpoint with this config has in the official layout.

    Returns:
        Shape by stored name: 4,742 for the released model.
    """
    shapes: dict[str, Shape] = {
        name: tuple(tensor.shape) for name, tensor in meta_model(config).state_dict().items()
    }
    return shapes | dict(_buffers(config, shapes)) | dict(_copies(config, shapes)) | _mask(config)


def _buffers(config: VisionLLMConfig, shapes: Mapping[str, Shape]) -> Iterator[tuple[str, Shape]]:
    """Which bias each pair of pixels of a Swin window takes."""
    backbones = {"gdino.": config.detector.backbone}
    if config.pose is not None:
        backbones["unipose."] = config.pose.backbone
    for name in shapes:
        if name.endswith(_BIAS_TABLE):
            pixels = backbones[f"{name.partition('.')[0]}."].window_size ** 2
            yield name.removesuffix(_BIAS_TABLE) + _INDEX, (pixels, pixels)


def _copies(config: VisionLLMConfig, shapes: Mapping[str, Shape]) -> Iterator[tuple[str, Shape]]:
    """All names of the heads that a decoder's layers share."""
    layers = {"gdino.": config.detector.decoder_layers}
    if config.pose is not None:
        layers["unipose."] = config.pose.decoder_layers
    for head in _HEADS:
        first = f"{head.part}{head.name}.0."
        known = {canonical_name(name): shape for name, shape in shapes.items()}
        for name, shape in known.items():
            if name.startswith(first):
                for place in head.places:
                    for index in range(layers[head.part] - head.fewer):
                        start = f"{head.part}{place}{head.name}.{index}."
                        yield start + name.removeprefix(first), shape


def _mask(config: VisionLLMConfig) -> dict[str, Shape]:
    """The object decoder's first mask head, which nothing reads."""
    width = config.detector.d_model
    widths = (width, width, width, config.detector.mask_dim)
    out: dict[str, Shape] = {}
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        start = f"gdino.model.mask_embed.layers.{i}."
        out |= {f"{start}weight": (outputs, inputs), f"{start}bias": (outputs,)}
    return out
