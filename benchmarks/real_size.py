"""The released model's vision stages, built (``python -m visionllm_edge.benchmarks.real_size``).

CLIP-L/14-336 with its bridge and the Swin-T object decoder at their released sizes, with random
weights: they cost the same memory and time as the real ones. Each stage is traced, compared with
torch in ONNX Runtime, lowered for every target of the table, and built with TensorRT-RTX (plugins
and plain, fp32 and fp16), which needs no GPU. What this cannot show is how fast an engine runs.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from visionllm_edge.benchmarks.environment import describe_environment
from visionllm_edge.benchmarks.report import write_report
from visionllm_edge.runtime.engines.plan import NodeForm, Profile, ShapeRange, StagePlan
from visionllm_edge.runtime.errors import EdgeError

__all__ = ["RELEASED_BUCKET", "build_all", "released_config"]

RELEASED_BUCKET = (800, 1088)
"""The released detector's 800 x 1066 pictures, padded to a multiple of 32."""

STAGES = ("vision_encoder", "det_backbone", "det_encoder", "det_decoder", "det_masks")
_PRECISIONS = ("fp32", "fp16")
_TARGET = "rtx-ada"
_PACKAGES = ("visionllm-edge", "torch", "onnx", "onnxruntime", "tensorrt-rtx")
_TEXTS = (1, 20, 80)
_SEED = 5

Note = Callable[[str], None]


def released_config(*, llm_layers: int = 1) -> dict[str, Any]:
    """``config.json`` of the released 7B model, with fewer layers of the language model.

    Source: the released checkpoint's config; vision and detector fields that other versions would
    differ in are written out.
    """
    width = 4096
    return {
        "model_type": "visionllmv2",
        "architectures": ["VisionLLMv2Model"],
        "vl_bridge_type": "mlp2x_gelu",
        "vis_output_layer": -2,
        "use_pixelshuffle": False,
        "use_llm_lora": False,
        "num_embs": 4,
        "num_embs_gen": 64,
        "use_region_encoder": False,
        "use_gdino": True,
        "use_unipose": False,
        "use_sd": False,
        "use_ip2p": False,
        "vis_encoder_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        },
        "llm_config": {
            "model_type": "llama",
            "vocab_size": 32026,
            "hidden_size": width,
            "intermediate_size": 11008,
            "num_hidden_layers": llm_layers,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
        },
        "gdino_config": {
            "model_type": "grounding-dino",
            "backbone_config": {
                "model_type": "swin",
                "embed_dim": 96,
                "depths": [2, 2, 6, 2],
                "num_heads": [3, 6, 12, 24],
                "window_size": 7,
                "mlp_ratio": 4.0,
                "patch_size": 4,
                "out_features": ["stage1", "stage2", "stage3", "stage4"],
            },
            "num_queries": 900,
            "d_model": 256,
            "encoder_layers": 6,
            "decoder_layers": 6,
            "encoder_ffn_dim": 2048,
            "decoder_ffn_dim": 2048,
            "encoder_attention_heads": 8,
            "decoder_attention_heads": 8,
            "encoder_n_points": 4,
            "decoder_n_points": 4,
            "num_feature_levels": 4,
            "two_stage": True,
            "embedding_init_target": True,
            "max_text_len": 256,
            "positional_embedding_temperature": 20,
            "mask_dim": 256,
            "norm": "GN",
            "l_hidden_size": width,
            "num_embs": 4,
        },
        "visionllm_edge": {
            "det_shortest_edge": 800,
            "det_longest_edge": 1333,
            "det_buckets": [list(RELEASED_BUCKET)],
            "max_tiles": 1,
            "template": "vicuna_v1",
        },
    }


def build_all(
    folder: Path, *, stages: Sequence[str] = STAGES, note: Note = lambda text: None
) -> Iterator[dict[str, Any]]:
    """Build every stage in every form; yields one row per engine, or per stage on the CPU.

    Args:
        folder: for graphs, weights, logs and engines.
        stages: names out of `STAGES`.
        note: gets a line per step.

    Raises:
        ExportError, ParityError, BackendError: a stage does not trace, lower or build.
    """
    import torch

    from visionllm_edge.export.build_stage import ModelPair
    from visionllm_edge.export.components.model import VisionLLM
    from visionllm_edge.export.config import config_from_dict
    from visionllm_edge.export.stages import STAGES as TABLE

    torch.manual_seed(_SEED)
    note("make random weights at the released sizes")
    model = VisionLLM(config_from_dict(released_config(), name="released")).eval()
    pair = ModelPair(model)
    (folder / "graphs").mkdir(parents=True)
    for stage in (stage for stage in TABLE if stage.name in stages):
        note(f"{stage.name}: trace")
        yield from _stage_rows(pair, stage, folder, note)


def _stage_rows(pair: Any, stage: Any, folder: Path, note: Note) -> Iterator[dict[str, Any]]:
    import onnx_ir as ir

    from visionllm_edge.export.build_stage import canonical_graph
    from visionllm_edge.export.lowering import lower
    from visionllm_edge.export.passes.share_weights import WeightFile
    from visionllm_edge.runtime.targets import find_target

    bucket = RELEASED_BUCKET if stage.bucketed else None
    canonical = folder / "graphs" / f"{stage.name}.canonical.onnx"
    with WeightFile(folder / "graphs" / f"{stage.name}.weights") as weights:
        model = canonical_graph(pair, stage, bucket)
        weights.take(model)
        ir.save(model, canonical)
    note(f"{stage.name}: compare with torch in ONNX Runtime")
    yield {"stage": stage.name, "backend": "onnxruntime"} | _cpu_row(pair, stage, bucket, canonical)
    yield {"stage": stage.name, "lowered": _lower_everywhere(canonical)}
    target = find_target(_TARGET)
    for plugins in (True, False):
        for precision in _PRECISIONS:
            name = f"{stage.name}.{precision}.{'plugin' if plugins else 'plain'}"
            model = ir.load(canonical)
            forms = lower(model, target, precision=precision, plugins=plugins)
            if plugins and not any(form.form == "plugin" for form in forms):
                continue
            with WeightFile(folder / "graphs" / f"{name}.weights") as weights:
                weights.take(model)
                ir.save(model, folder / "graphs" / f"{name}.onnx")
            plan = StagePlan(
                stage=stage.name,
                graph=f"graphs/{name}.onnx",
                engine=f"{name}.engine",
                precision=precision,
                profiles=_profiles(model),
                forms=tuple(NodeForm(**form.to_dict()) for form in forms),
            )
            note(f"{name}: build")
            yield _engine_row(folder, name, plan, target.sm)


def _lower_everywhere(canonical: Path) -> dict[str, dict[str, int]]:
    """Forms and how many nodes got each, for every target with a TensorRT and every precision."""
    import onnx_ir as ir

    from visionllm_edge.export.lowering import lower
    from visionllm_edge.runtime.targets import TARGETS

    out: dict[str, dict[str, int]] = {}
    known: dict[tuple[str, str, str, bool], dict[str, int]] = {}
    for target in TARGETS.values():
        for precision in _PRECISIONS if target.backend != "onnxruntime" else ("fp32",):
            for plugins in (True, False):
                # What lowering does depends on these four, so devices of one release share it.
                key = (target.backend, target.tensorrt, precision, plugins)
                if key not in known:
                    model = ir.load(canonical)
                    forms = lower(model, target, precision=precision, plugins=plugins)
                    known[key] = dict(Counter(f"{form.op}: {form.form}" for form in forms))
                name = f"{target.name} {precision} {'plugins' if plugins else 'plain'}"
                out[name] = known[key]
    return out


def _profiles(model: Any) -> tuple[Profile, ...]:
    """Tiles: one. Texts: 1 to 80, as COCO has. Masks: 1 to 900."""
    ranges = {"n": (1, 1, 1), "T": _TEXTS, "k": (1, 100, 900)}
    shapes = {}
    for value in model.graph.inputs:
        axes = [axis if isinstance(axis, int) else ranges[str(axis.value)] for axis in value.shape]
        if any(isinstance(axis, tuple) for axis in axes):
            low, best, high = (
                tuple(axis if isinstance(axis, int) else axis[i] for axis in axes) for i in range(3)
            )
            shapes[value.name] = ShapeRange(low, best, high)
    return (Profile("all", shapes),) if shapes else ()


def _engine_row(folder: Path, name: str, plan: StagePlan, sm: tuple[int, ...]) -> dict[str, Any]:
    from visionllm_edge.runtime.engines.build import run_build
    from visionllm_edge.runtime.engines.request import BuildRequest

    answer = run_build(
        BuildRequest(
            plan=plan,
            root=str(folder),
            backend="tensorrt_rtx",
            sm=sm,
            log=str(folder / f"{name}.log"),
            engine=str(folder / plan.engine),
            plugins="python" if plan.plugin_ops else "none",
        )
    )
    (folder / plan.engine).unlink()
    return {
        "stage": plan.stage,
        "backend": f"tensorrt_rtx {answer.version}",
        "precision": plan.precision,
        "forms": sorted({f"{form.op}: {form.form}" for form in plan.forms}),
        "plugin_layers": answer.plugins,
        "layers": answer.layers,
        "engine_bytes": answer.engine_bytes,
        "parse_s": round(answer.parse_s, 2),
        "build_s": round(answer.build_s, 2),
        "peak_rss_bytes": answer.peak_rss_bytes,
    }


def _cpu_row(pair: Any, stage: Any, bucket: Any, canonical: Path) -> dict[str, Any]:
    """Largest difference to torch in fp32 of one run, relative to the largest value of the tensor.

    Reported, not judged: with random weights the scores of queries lie so close that two right
    implementations put them in another order.
    """
    import torch

    from visionllm_edge.export.build_stage import variant_ports
    from visionllm_edge.runtime.backends import StageOptions, load_backend

    ports = variant_ports(pair, stage, bucket)
    case = replace(stage.trace_case, tiles=1)
    inputs = stage.inputs(pair.examples, bucket, case)
    with torch.no_grad():
        expected = stage.module(pair.model, bucket)(*inputs.values())
    if isinstance(expected, torch.Tensor):
        expected = (expected,)
    runner = load_backend("onnxruntime").load_stage(canonical, ports, StageOptions())
    got = runner.run({name: tensor.numpy() for name, tensor in inputs.items()})
    errors = {}
    for port, tensor in zip(ports.outputs, expected, strict=True):
        true = tensor.numpy()
        scale = float(np.abs(true).max())
        errors[port.name] = float(np.abs(np.asarray(got[port.name]) - true).max()) / scale
    return {"precision": "fp32", "relative_error_to_torch": errors}


def _line(row: dict[str, Any]) -> str:
    if "lowered" in row:
        return f"{row['stage']:<15} lowered in {len(row['lowered'])} combinations"
    if "engine_bytes" not in row:
        worst = max(row["relative_error_to_torch"].values())
        return f"{row['stage']:<15} onnxruntime fp32, largest relative difference {worst:.2g}"
    return (
        f"{row['stage']:<15} {row['precision']} {row['plugin_layers']:2d} plugins "
        f"{row['layers']:5d} layers {row['engine_bytes'] / 1e6:7.1f} MB  "
        f"parse {row['parse_s']:5.1f} s  build {row['build_s']:6.1f} s  "
        f"{row['peak_rss_bytes'] / 1e9:.1f} GB"
    )


@click.command()
@click.option("--stage", "stages", multiple=True, type=click.Choice(STAGES), help="Only these.")
@click.option("--out", type=click.Path(path_type=Path), help="File for the results as JSON.")
def main(stages: tuple[str, ...], out: Path | None) -> None:
    """Build the released model's vision stages with random weights."""
    rows = []
    try:
        with tempfile.TemporaryDirectory(prefix="visionllm-edge-") as folder:
            made = build_all(
                Path(folder) / "work",
                stages=stages or STAGES,
                note=lambda text: click.echo(text, err=True),
            )
            for row in made:
                rows.append(row)
                click.echo(_line(row))
    except EdgeError as error:
        raise click.ClickException(str(error)) from error
    if out is not None:
        content = {
            "environment": describe_environment(_PACKAGES),
            "bucket": RELEASED_BUCKET,
            "rows": rows,
        }
        write_report(out, content)
        click.echo(f"results: {out}")


if __name__ == "__main__":
    main()
