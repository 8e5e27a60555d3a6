"""Every key of an official VisionLLM v2 checkpoint with its shape, for any widths.

Written down by hand from the layout of the released model, as a second opinion: nothing here
imports the components that load it. ``official_keys(RELEASED)`` is the released 7B model.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

Shape = tuple[int, ...]
Keys = dict[str, Shape]

PARTS = (
    "vis_encoder",
    "llm",
    "vl_bridge",
    "region_encoder",
    "gdino",
    "unipose",
    "sd",
    "ip2p",
    "emb_embeddings",
)


@dataclass(frozen=True)
class ClipWidths:
    """One CLIP tower; text towers have a vocabulary instead of an image."""

    hidden: int
    ffn: int
    layers: int
    heads: int


@dataclass(frozen=True)
class DecoderWidths:
    """What the object decoder and the keypoint decoder have in common."""

    dim: int = 256
    ffn: int = 2048
    heads: int = 8
    levels: int = 4
    points: int = 4
    queries: int = 900
    encoder_layers: int = 6
    decoder_layers: int = 6
    swin_dim: int = 96
    swin_depths: tuple[int, ...] = (2, 2, 6, 2)
    swin_heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    mlp_ratio: int = 4

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple(self.swin_dim * 2**i for i in range(4))


@dataclass(frozen=True)
class DiffusionWidths:
    """Stable Diffusion 1.5: text tower, autoencoder, U-Net, and the adapter before them."""

    cross: int = 768
    queries: int = 77
    adapter_ffn: int = 3072
    text: ClipWidths = ClipWidths(768, 3072, 12, 12)
    text_vocab: int = 49408
    vae: tuple[int, ...] = (128, 256, 512, 512)
    unet: tuple[int, ...] = (320, 640, 1280, 1280)
    latent: int = 4


@dataclass(frozen=True)
class Widths:
    """All numbers that shapes depend on."""

    vision: ClipWidths = ClipWidths(1024, 4096, 24, 16)
    image: int = 336
    patch: int = 14
    vocab: int = 32026
    llm: int = 4096
    llm_ffn: int = 11008
    llm_layers: int = 32
    llm_heads: int = 32
    llm_kv_heads: int = 32
    num_embs: int = 4
    num_embs_gen: int = 64
    region: tuple[int, int] = (64, 256)
    det: DecoderWidths = DecoderWidths()
    pose: DecoderWidths = DecoderWidths()
    sd: DiffusionWidths = field(default_factory=DiffusionWidths)


RELEASED = Widths()

_SMALL = DecoderWidths(
    dim=32,
    ffn=48,
    heads=4,
    points=2,
    queries=20,
    encoder_layers=1,
    decoder_layers=3,
    swin_dim=16,
    swin_depths=(1, 2, 1, 1),
    swin_heads=(1, 2, 4, 8),
    window=3,
    mlp_ratio=2,
)
TINY = Widths(
    vision=ClipWidths(16, 24, 3, 2),
    image=28,
    vocab=40,
    llm=24,
    llm_ffn=40,
    llm_layers=2,
    llm_heads=4,
    llm_kv_heads=2,
    num_embs_gen=8,
    region=(1, 4),
    det=_SMALL,
    pose=replace(_SMALL, decoder_layers=6),
    sd=DiffusionWidths(
        cross=16,
        queries=5,
        adapter_ffn=24,
        text=ClipWidths(16, 24, 1, 2),
        text_vocab=10,
        vae=(4, 4, 8, 8),
        unet=(8, 8, 16, 16),
    ),
)
"""Small enough for a test to write to disk in a moment; every part of the real one."""


def official_keys(widths: Widths) -> Keys:
    """All keys and shapes, tied copies and integer buffers included."""
    keys: Keys = {}
    w = widths
    parts: list[tuple[str, Iterator[tuple[str, Shape]]]] = [
        ("vis_encoder.vision_model.", _clip_vision(w)),
        ("llm.", _llama(w)),
        ("vl_bridge.", _mlp_gelu(w.vision.hidden, w.llm, w.llm)),
        ("region_encoder.", _region(w)),
        ("gdino.", _gdino(w)),
        ("unipose.", _unipose(w)),
        ("sd.", _diffusion(w, inputs=w.sd.latent)),
        ("ip2p.", _diffusion(w, inputs=2 * w.sd.latent)),
    ]
    for prefix, part in parts:
        for name, shape in part:
            assert prefix + name not in keys, f"twice: {prefix}{name}"
            keys[prefix + name] = shape
    for task, rows in (
        ("det", w.num_embs),
        ("pose", w.num_embs),
        ("gen", w.num_embs_gen),
        ("edit", w.num_embs_gen),
    ):
        keys[f"emb_embeddings_{task}.weight"] = (rows, w.llm)
    return keys


def part_of(name: str) -> str:
    """The part of the model that a key belongs to."""
    return next(part for part in PARTS if name.startswith(part))


def tied_group(name: str) -> str:
    """Names with the same result hold the same tensor."""
    head = name
    for prefix in (
        "gdino.model.decoder.",
        "gdino.",
        "unipose.transformer.decoder.",
        "unipose.",
    ):
        if name.startswith(prefix):
            head = name.removeprefix(prefix)
            break
    module, _, rest = head.partition(".")
    index, _, leaf = rest.partition(".")
    if module in ("bbox_embed", "mask_embed", "pose_embed", "pose_hw_embed") and index.isdigit():
        return f"{name.partition('.')[0]}.{module}.0.{leaf}"
    return name


def _linear(name: str, outputs: int, inputs: int, *, bias: bool = True) -> Keys:
    keys: Keys = {f"{name}.weight": (outputs, inputs)}
    if bias:
        keys[f"{name}.bias"] = (outputs,)
    return keys


def _conv(name: str, outputs: int, inputs: int, kernel: int) -> Keys:
    return {f"{name}.weight": (outputs, inputs, kernel, kernel), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> Keys:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _mlp(name: str, *widths: int) -> Keys:
    keys: Keys = {}
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        keys |= _linear(f"{name}.layers.{i}", outputs, inputs)
    return keys


def _packed_attention(name: str, width: int) -> Keys:
    """torch's own multi-head attention."""
    return {
        f"{name}.in_proj_weight": (3 * width, width),
        f"{name}.in_proj_bias": (3 * width,),
        **_linear(f"{name}.out_proj", width, width),
    }


def _mlp_gelu(inputs: int, hidden: int, outputs: int) -> Iterator[tuple[str, Shape]]:
    yield from _linear("0", hidden, inputs).items()
    yield from _linear("2", outputs, hidden).items()


def _clip_layers(tower: ClipWidths) -> Iterator[tuple[str, Shape]]:
    for i in range(tower.layers):
        at = f"encoder.layers.{i}."
        for name in ("q", "k", "v", "out"):
            yield from _linear(f"{at}self_attn.{name}_proj", tower.hidden, tower.hidden).items()
        yield from _norm(f"{at}layer_norm1", tower.hidden).items()
        yield from _norm(f"{at}layer_norm2", tower.hidden).items()
        yield from _linear(f"{at}mlp.fc1", tower.ffn, tower.hidden).items()
        yield from _linear(f"{at}mlp.fc2", tower.hidden, tower.ffn).items()


def _clip_vision(w: Widths) -> Iterator[tuple[str, Shape]]:
    dim = w.vision.hidden
    yield "embeddings.class_embedding", (dim,)
    yield "embeddings.patch_embedding.weight", (dim, 3, w.patch, w.patch)
    yield "embeddings.position_embedding.weight", ((w.image // w.patch) ** 2 + 1, dim)
    yield from _norm("pre_layrnorm", dim).items()
    yield from _clip_layers(w.vision)
    yield from _norm("post_layernorm", dim).items()


def _llama(w: Widths) -> Iterator[tuple[str, Shape]]:
    kv = w.llm // w.llm_heads * w.llm_kv_heads
    yield "model.embed_tokens.weight", (w.vocab, w.llm)
    for i in range(w.llm_layers):
        at = f"model.layers.{i}."
        for name, width in (("q", w.llm), ("k", kv), ("v", kv), ("o", w.llm)):
            yield f"{at}self_attn.{name}_proj.weight", (width, w.llm)
        yield f"{at}mlp.gate_proj.weight", (w.llm_ffn, w.llm)
        yield f"{at}mlp.up_proj.weight", (w.llm_ffn, w.llm)
        yield f"{at}mlp.down_proj.weight", (w.llm, w.llm_ffn)
        yield f"{at}input_layernorm.weight", (w.llm,)
        yield f"{at}post_attention_layernorm.weight", (w.llm,)
    yield "model.norm.weight", (w.llm,)
    yield "lm_head.weight", (w.vocab, w.llm)


def _region(w: Widths) -> Iterator[tuple[str, Shape]]:
    first, second = w.region
    yield from _conv("mask_embedding.0", first, 4, 7).items()
    yield from _norm("mask_embedding.1", first).items()
    yield from _conv("mask_embedding.3", second, first, 2).items()
    yield from _norm("mask_embedding.4", second).items()
    yield from _conv("mask_embedding.6", w.vision.hidden, second, 1).items()
    yield from _linear("up_dim", w.llm, w.vision.hidden).items()


def _deformable(name: str, d: DecoderWidths) -> Keys:
    samples = d.heads * d.levels * d.points
    return {
        **_linear(f"{name}.sampling_offsets", 2 * samples, d.dim),
        **_linear(f"{name}.attention_weights", samples, d.dim),
        **_linear(f"{name}.value_proj", d.dim, d.dim),
        **_linear(f"{name}.output_proj", d.dim, d.dim),
    }


def _input_projections(name: str, d: DecoderWidths) -> Keys:
    keys: Keys = {}
    last = d.channels[-1]
    for i, (width, kernel) in enumerate([*((c, 1) for c in d.channels[1:]), (last, 3)]):
        keys |= _conv(f"{name}.{i}.0", d.dim, width, kernel)
        keys |= _norm(f"{name}.{i}.1", d.dim)
    return keys


def _hf_swin(d: DecoderWidths) -> Iterator[tuple[str, Shape]]:
    yield from _conv("embeddings.patch_embeddings.projection", d.swin_dim, 3, 4).items()
    yield from _norm("embeddings.norm", d.swin_dim).items()
    for stage, (width, depth, heads) in enumerate(
        zip(d.channels, d.swin_depths, d.swin_heads, strict=True)
    ):
        for i in range(depth):
            at = f"encoder.layers.{stage}.blocks.{i}."
            yield from _norm(f"{at}layernorm_before", width).items()
            for name in ("query", "key", "value"):
                yield from _linear(f"{at}attention.self.{name}", width, width).items()
            yield (
                f"{at}attention.self.relative_position_bias_table",
                ((2 * d.window - 1) ** 2, heads),
            )
            yield f"{at}attention.self.relative_position_index", (d.window**2, d.window**2)
            yield from _linear(f"{at}attention.output.dense", width, width).items()
            yield from _norm(f"{at}layernorm_after", width).items()
            yield from _linear(f"{at}intermediate.dense", d.mlp_ratio * width, width).items()
            yield from _linear(f"{at}output.dense", width, d.mlp_ratio * width).items()
        if stage < 3:
            at = f"encoder.layers.{stage}.downsample."
            yield from _norm(f"{at}norm", 4 * width).items()
            yield from _linear(f"{at}reduction", 2 * width, 4 * width, bias=False).items()
        yield from _norm(f"hidden_states_norms.stage{stage + 1}", width).items()


def _gdino(w: Widths) -> Iterator[tuple[str, Shape]]:
    d, dim, half = w.det, w.det.dim, w.det.ffn // 2
    box, mask = (dim, dim, dim, 4), (dim, dim, dim, dim)
    yield "model.level_embed", (d.levels, dim)
    yield "model.query_position_embeddings.weight", (d.queries, dim)
    for name, shape in _hf_swin(d):
        yield f"model.backbone.conv_encoder.model.{name}", shape
    yield from _input_projections("model.input_proj_vision", d).items()
    yield "model.lateral_convs.0.weight", (dim, d.channels[0], 1, 1)
    yield from _norm("model.lateral_convs.0.norm", dim).items()
    yield "model.output_convs.0.weight", (dim, dim, 3, 3)
    yield from _norm("model.output_convs.0.norm", dim).items()
    yield from _conv("model.mask_features", dim, dim, 1).items()
    yield from _mlp("model.mask_embed", *mask).items()
    for i in range(d.encoder_layers):
        at = f"model.encoder.layers.{i}.fusion_layer."
        yield f"{at}vision_param", (dim,)
        yield f"{at}text_param", (dim,)
        yield from _norm(f"{at}layer_norm_vision", dim).items()
        yield from _norm(f"{at}layer_norm_text", dim).items()
        for name in ("vision_proj", "text_proj", "values_vision_proj", "values_text_proj"):
            yield from _linear(f"{at}attn.{name}", half, dim).items()
        for name in ("out_vision_proj", "out_text_proj"):
            yield from _linear(f"{at}attn.{name}", dim, half).items()
        at = f"model.encoder.layers.{i}.text_enhancer_layer."
        yield from _packed_attention(f"{at}self_attn", dim).items()
        yield from _linear(f"{at}fc1", half, dim).items()
        yield from _linear(f"{at}fc2", dim, half).items()
        yield from _norm(f"{at}layer_norm_before", dim).items()
        yield from _norm(f"{at}layer_norm_after", dim).items()
        at = f"model.encoder.layers.{i}.deformable_layer."
        yield from _deformable(f"{at}self_attn", d).items()
        yield from _norm(f"{at}self_attn_layer_norm", dim).items()
        yield from _linear(f"{at}fc1", d.ffn, dim).items()
        yield from _linear(f"{at}fc2", dim, d.ffn).items()
        yield from _norm(f"{at}final_layer_norm", dim).items()
    yield from _linear("model.enc_output", dim, dim).items()
    yield from _norm("model.enc_output_norm", dim).items()
    yield from _mlp("model.encoder_output_bbox_embed", *box).items()
    for i in range(d.decoder_layers):
        at = f"model.decoder.layers.{i}."
        yield from _packed_attention(f"{at}self_attn", dim).items()
        yield from _norm(f"{at}self_attn_layer_norm", dim).items()
        yield from _packed_attention(f"{at}encoder_attn_text", dim).items()
        yield from _norm(f"{at}encoder_attn_text_layer_norm", dim).items()
        yield from _deformable(f"{at}encoder_attn", d).items()
        yield from _norm(f"{at}encoder_attn_layer_norm", dim).items()
        yield from _linear(f"{at}fc1", d.ffn, dim).items()
        yield from _linear(f"{at}fc2", dim, d.ffn).items()
        yield from _norm(f"{at}final_layer_norm", dim).items()
        yield from _mlp(f"model.decoder.bbox_embed.{i}", *box).items()
        yield from _mlp(f"bbox_embed.{i}", *box).items()
        yield from _mlp(f"mask_embed.{i}", *mask).items()
    yield from _norm("model.decoder.layer_norm", dim).items()
    yield from _mlp("model.decoder.reference_points_head", 2 * dim, dim, dim).items()
    yield from _mlp("patch2query", w.llm, dim, dim, dim).items()


def _classic_swin(d: DecoderWidths) -> Iterator[tuple[str, Shape]]:
    yield from _conv("patch_embed.proj", d.swin_dim, 3, 4).items()
    yield from _norm("patch_embed.norm", d.swin_dim).items()
    for stage, (width, depth, heads) in enumerate(
        zip(d.channels, d.swin_depths, d.swin_heads, strict=True)
    ):
        for i in range(depth):
            at = f"layers.{stage}.blocks.{i}."
            yield from _norm(f"{at}norm1", width).items()
            yield from _linear(f"{at}attn.qkv", 3 * width, width).items()
            yield from _linear(f"{at}attn.proj", width, width).items()
            yield f"{at}attn.relative_position_bias_table", ((2 * d.window - 1) ** 2, heads)
            yield f"{at}attn.relative_position_index", (d.window**2, d.window**2)
            yield from _norm(f"{at}norm2", width).items()
            yield from _linear(f"{at}mlp.fc1", d.mlp_ratio * width, width).items()
            yield from _linear(f"{at}mlp.fc2", width, d.mlp_ratio * width).items()
        if stage < 3:
            at = f"layers.{stage}.downsample."
            yield from _norm(f"{at}norm", 4 * width).items()
            yield from _linear(f"{at}reduction", 2 * width, 4 * width, bias=False).items()
        if stage > 0:
            yield from _norm(f"norm{stage}", width).items()


def _unipose(w: Widths) -> Iterator[tuple[str, Shape]]:
    d, dim, half = w.pose, w.pose.dim, w.pose.ffn // 2
    heads = (
        ("bbox_embed", d.decoder_layers, 4),
        ("pose_embed", d.decoder_layers - 1, 2),
        ("pose_hw_embed", d.decoder_layers - 2, 2),
    )
    for name, shape in _classic_swin(d):
        yield f"backbone.0.{name}", shape
    yield from _input_projections("input_proj", d).items()
    yield "transformer.level_embed", (d.levels, dim)
    yield "transformer.tgt_embed.weight", (d.queries, dim)
    for i in range(d.encoder_layers):
        at = f"transformer.encoder.fusion_layers.{i}."
        yield f"{at}gam_v", (dim,)
        yield f"{at}gam_l", (dim,)
        yield from _norm(f"{at}layer_norm_v", dim).items()
        yield from _norm(f"{at}layer_norm_l", dim).items()
        for name in ("v_proj", "l_proj", "values_v_proj", "values_l_proj"):
            yield from _linear(f"{at}attn.{name}", half, dim).items()
        for name in ("out_v_proj", "out_l_proj"):
            yield from _linear(f"{at}attn.{name}", dim, half).items()
        at = f"transformer.encoder.text_layers.{i}."
        yield from _packed_attention(f"{at}self_attn", dim).items()
        yield from _linear(f"{at}linear1", half, dim).items()
        yield from _linear(f"{at}linear2", dim, half).items()
        yield from _norm(f"{at}norm1", dim).items()
        yield from _norm(f"{at}norm2", dim).items()
        at = f"transformer.encoder.layers.{i}."
        yield from _deformable(f"{at}self_attn", d).items()
        yield from _norm(f"{at}norm1", dim).items()
        yield from _linear(f"{at}linear1", d.ffn, dim).items()
        yield from _linear(f"{at}linear2", dim, d.ffn).items()
        yield from _norm(f"{at}norm2", dim).items()
    yield from _linear("transformer.enc_output", dim, dim).items()
    yield from _norm("transformer.enc_output_norm", dim).items()
    yield from _mlp("transformer.enc_out_bbox_embed", dim, dim, dim, 4).items()
    for i in range(d.decoder_layers):
        at = f"transformer.decoder.layers.{i}."
        yield from _packed_attention(f"{at}self_attn", dim).items()
        yield from _packed_attention(f"{at}ca_text", dim).items()
        yield from _deformable(f"{at}cross_attn", d).items()
        for norm in ("norm1", "norm2", "norm3", "catext_norm"):
            yield from _norm(f"{at}{norm}", dim).items()
        yield from _linear(f"{at}linear1", d.ffn, dim).items()
        yield from _linear(f"{at}linear2", dim, d.ffn).items()
    yield from _norm("transformer.decoder.norm", dim).items()
    yield from _mlp("transformer.decoder.ref_point_head", 2 * dim, dim, dim).items()
    yield "transformer.decoder.hw.weight", (17, 2)
    yield "transformer.decoder.hw_append.weight", (51, 2)
    for name, count, outputs in heads:
        for i in range(count):
            yield from _mlp(f"{name}.{i}", dim, dim, dim, outputs).items()
            yield from _mlp(f"transformer.decoder.{name}.{i}", dim, dim, dim, outputs).items()
    yield from _mlp("projection_llava", w.llm, dim, dim, dim).items()
    yield from _mlp("projection_kpt_llava", w.llm, dim, dim, dim).items()


def _diffusion(w: Widths, *, inputs: int) -> Iterator[tuple[str, Shape]]:
    s = w.sd
    yield "llm2sd_mapper_queries", (1, s.queries, s.cross)
    for name, shape in _mlp_gelu(w.llm, s.cross, s.cross):
        yield f"emb_proj.{name}", shape
    for side, attentions, norms in (
        ("encoder", ("self_attn",), 2),
        ("decoder", ("self_attn", "multihead_attn"), 3),
    ):
        at = f"llm2sd_mapper.{side}.layers.0."
        for attention in attentions:
            yield from _packed_attention(at + attention, s.cross).items()
        yield from _linear(f"{at}linear1", s.adapter_ffn, s.cross).items()
        yield from _linear(f"{at}linear2", s.cross, s.adapter_ffn).items()
        for i in range(norms):
            yield from _norm(f"{at}norm{i + 1}", s.cross).items()
        yield from _norm(f"llm2sd_mapper.{side}.norm", s.cross).items()
    at = "sd_text_encoder.text_model."
    yield f"{at}embeddings.token_embedding.weight", (s.text_vocab, s.text.hidden)
    yield f"{at}embeddings.position_embedding.weight", (77, s.text.hidden)
    for name, shape in _clip_layers(s.text):
        yield at + name, shape
    yield from _norm(f"{at}final_layer_norm", s.text.hidden).items()
    for name, shape in _vae(s):
        yield f"sd_vae.{name}", shape
    for name, shape in _unet(s, inputs):
        yield f"sd_unet.{name}", shape


def _resnet(name: str, inputs: int, outputs: int, *, time: int = 0) -> Keys:
    keys: Keys = {
        **_norm(f"{name}.norm1", inputs),
        **_conv(f"{name}.conv1", outputs, inputs, 3),
        **_norm(f"{name}.norm2", outputs),
        **_conv(f"{name}.conv2", outputs, outputs, 3),
    }
    if time:
        keys |= _linear(f"{name}.time_emb_proj", outputs, time)
    if inputs != outputs:
        keys |= _conv(f"{name}.conv_shortcut", outputs, inputs, 1)
    return keys


def _vae(s: DiffusionWidths) -> Iterator[tuple[str, Shape]]:
    widths, top = s.vae, s.vae[-1]

    def middle(side: str) -> Iterator[tuple[str, Shape]]:
        at = f"{side}.mid_block."
        yield from _resnet(f"{at}resnets.0", top, top).items()
        yield from _norm(f"{at}attentions.0.group_norm", top).items()
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            yield from _linear(f"{at}attentions.0.{name}", top, top).items()
        yield from _resnet(f"{at}resnets.1", top, top).items()

    yield from _conv("encoder.conv_in", widths[0], 3, 3).items()
    before = widths[0]
    for i, width in enumerate(widths):
        for j in range(2):
            yield from _resnet(f"encoder.down_blocks.{i}.resnets.{j}", before, width).items()
            before = width
        if i < 3:
            yield from _conv(
                f"encoder.down_blocks.{i}.downsamplers.0.conv", width, width, 3
            ).items()
    yield from middle("encoder")
    yield from _norm("encoder.conv_norm_out", top).items()
    yield from _conv("encoder.conv_out", 2 * s.latent, top, 3).items()
    yield from _conv("quant_conv", 2 * s.latent, 2 * s.latent, 1).items()
    yield from _conv("post_quant_conv", s.latent, s.latent, 1).items()
    yield from _conv("decoder.conv_in", top, s.latent, 3).items()
    yield from middle("decoder")
    before = top
    for i, width in enumerate(reversed(widths)):
        for j in range(3):
            yield from _resnet(f"decoder.up_blocks.{i}.resnets.{j}", before, width).items()
            before = width
        if i < 3:
            yield from _conv(f"decoder.up_blocks.{i}.upsamplers.0.conv", width, width, 3).items()
    yield from _norm("decoder.conv_norm_out", widths[0]).items()
    yield from _conv("decoder.conv_out", 3, widths[0], 3).items()


def _spatial_transformer(name: str, width: int, cross: int) -> Keys:
    block = f"{name}.transformer_blocks.0"
    keys: Keys = {**_norm(f"{name}.norm", width), **_conv(f"{name}.proj_in", width, width, 1)}
    for i, inputs in ((1, width), (2, cross)):
        keys |= _norm(f"{block}.norm{i}", width)
        keys |= _linear(f"{block}.attn{i}.to_q", width, width, bias=False)
        keys |= _linear(f"{block}.attn{i}.to_k", width, inputs, bias=False)
        keys |= _linear(f"{block}.attn{i}.to_v", width, inputs, bias=False)
        keys |= _linear(f"{block}.attn{i}.to_out.0", width, width)
    keys |= _norm(f"{block}.norm3", width)
    keys |= _linear(f"{block}.ff.net.0.proj", 8 * width, width)  # gated: two halves of 4x
    keys |= _linear(f"{block}.ff.net.2", width, 4 * width)
    return keys | _conv(f"{name}.proj_out", width, width, 1)


def _unet(s: DiffusionWidths, inputs: int) -> Iterator[tuple[str, Shape]]:
    widths, time = s.unet, 4 * s.unet[0]
    yield from _conv("conv_in", widths[0], inputs, 3).items()
    yield from _linear("time_embedding.linear_1", time, widths[0]).items()
    yield from _linear("time_embedding.linear_2", time, time).items()
    skips = [widths[0]]
    before = widths[0]
    for i, width in enumerate(widths):
        at = f"down_blocks.{i}."
        for j in range(2):
            yield from _resnet(f"{at}resnets.{j}", before, width, time=time).items()
            if i < 3:
                yield from _spatial_transformer(f"{at}attentions.{j}", width, s.cross).items()
            before = width
            skips.append(width)
        if i < 3:
            yield from _conv(f"{at}downsamplers.0.conv", width, width, 3).items()
            skips.append(width)
    yield from _resnet("mid_block.resnets.0", before, before, time=time).items()
    yield from _spatial_transformer("mid_block.attentions.0", before, s.cross).items()
    yield from _resnet("mid_block.resnets.1", before, before, time=time).items()
    for i, width in enumerate(reversed(widths)):
        at = f"up_blocks.{i}."
        for j in range(3):
            yield from _resnet(f"{at}resnets.{j}", before + skips.pop(), width, time=time).items()
            if i > 0:
                yield from _spatial_transformer(f"{at}attentions.{j}", width, s.cross).items()
            before = width
        if i < 3:
            yield from _conv(f"{at}upsamplers.0.conv", width, width, 3).items()
    yield from _norm("conv_norm_out", widths[0]).items()
    yield from _conv("conv_out", s.latent, widths[0], 3).items()
