"""A bundle against plain torch (``python -m visionllm_edge.benchmarks.against_torch``).

Both run the runtime's own pipeline with the same threads; only the stages differ (compiled graphs,
or torch components in fp32). The answers are compared before any time is printed. Every picture is
new to both, so nothing is reused from run to run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

from visionllm_edge.benchmarks.environment import describe_environment
from visionllm_edge.benchmarks.latency import time_interleaved
from visionllm_edge.runtime import shapes_world as world
from visionllm_edge.runtime.errors import EdgeError, ParityError
from visionllm_edge.runtime.llm.sampling import GenerationConfig
from visionllm_edge.runtime.model import VisionLLM

__all__ = ["compare"]

_PACKAGES = ("visionllm-edge", "torch", "onnxruntime", "numpy")
_TOKENS = 32
_CLASSES = list(world.SHAPES)
_SCORE_TOLERANCE = 1e-3
_BOX_TOLERANCE_PX = 0.1


def compare(bundle: Path, checkpoint: Path, *, rounds: int, threads: int) -> dict[str, object]:
    """Time detect, segment and a caption of 32 tokens, interleaved.

    Raises:
        ParityError: the two disagree, so that their times say nothing.
    """
    import torch

    from visionllm_edge.export.reference import reference_model

    torch.set_num_threads(threads)
    ours = VisionLLM.load(bundle, threads=threads)
    torch_model = reference_model(bundle, checkpoint)
    _require_agreement(ours, torch_model)
    generation = GenerationConfig(max_new_tokens=_TOKENS, min_new_tokens=_TOKENS)
    tasks: dict[str, Callable[[VisionLLM, np.ndarray], object]] = {
        "detect": lambda model, image: model.detect(image, _CLASSES),
        "segment": lambda model, image: model.segment(image, _CLASSES),
        f"caption_{_TOKENS}_tokens": lambda model, image: model.caption(image, config=generation),
    }
    results: dict[str, object] = {}
    for name, task in tasks.items():
        # One stream of pictures each, of equal content: the n-th run of both sees the n-th picture.
        contestants = {
            label: _on_new_pictures(task, model)
            for label, model in (("torch", torch_model), ("bundle", ours))
        }
        results[name] = time_interleaved(contestants, rounds=rounds).to_dict()
    environment = describe_environment(_PACKAGES, threads=threads) | {
        "timer": "wall clock around the whole call, image array in, typed result out"
    }
    return {"environment": environment, "rounds": rounds, "tasks": results}


def _on_new_pictures(
    task: Callable[[VisionLLM, np.ndarray], object], model: VisionLLM
) -> Callable[[], object]:
    rng = np.random.default_rng(20_26)
    pictures = iter([world.make_scene(rng).image for _ in range(256)])
    return lambda: task(model, next(pictures))


def _require_agreement(ours: VisionLLM, reference: VisionLLM) -> None:
    rng = np.random.default_rng(7)
    for _ in range(4):
        image = world.make_scene(rng).image
        a, b = (m.detect(image, _CLASSES, threshold=0.3) for m in (ours, reference))
        pairs = list(zip(a.detections, b.detections, strict=False))
        same = len(a.detections) == len(b.detections) and all(
            x.label == y.label
            and abs(x.score - y.score) < _SCORE_TOLERANCE
            and np.abs(np.subtract(x.box_xyxy, y.box_xyxy)).max() < _BOX_TOLERANCE_PX
            for x, y in pairs
        )
        if not same or ours.caption(image).text != reference.caption(image).text:
            raise ParityError(
                "bundle and torch reference: expected the same answers on a shapes-world picture, "
                "got different ones. Their times are not compared; run visionllm-edge verify."
            )


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
@click.option("--rounds", type=click.IntRange(1, 200), default=30, help="Measured rounds.")
@click.option("--threads", type=click.IntRange(1), default=2, help="Threads for both.")
@click.option("--out", type=click.Path(path_type=Path), help="Also write the JSON to this file.")
def main(bundle: Path, checkpoint: Path, rounds: int, threads: int, out: Path | None) -> None:
    """Compare the latency of BUNDLE with its CHECKPOINT in torch."""
    try:
        result = compare(bundle, checkpoint, rounds=rounds, threads=threads)
    except EdgeError as error:
        raise click.ClickException(str(error)) from error
    text = json.dumps(result, indent=2)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n", encoding="utf-8")
    click.echo(text)


if __name__ == "__main__":
    main()
