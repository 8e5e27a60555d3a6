"""The demonstration: compile the tiny checkpoint, then ask the bundle about a picture it never saw.

Everything goes through the public ways in: `compile_checkpoint` and the runtime's `VisionLLM`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visionllm_edge.export.cache import StageCache
from visionllm_edge.export.compile import compile_checkpoint
from visionllm_edge.export.progress import Progress
from visionllm_edge.runtime import shapes_world
from visionllm_edge.runtime.draw import draw_result
from visionllm_edge.runtime.errors import CheckpointError
from visionllm_edge.runtime.model import VisionLLM
from visionllm_edge.runtime.results import DetectionResult, TextResult

__all__ = ["DEMO_SEED", "DemoAnswers", "run_demo", "tiny_checkpoint"]

DEMO_SEED = 20_261_122
"""Of the picture. Training draws its scenes from other seeds."""

_SIDE_PX = 128


@dataclass(frozen=True)
class DemoAnswers:
    """What the bundle said about the picture.

    Attributes:
        bundle: where the bundle is.
        picture: where the drawing is.
        classes: the names that were looked for.
        found: boxes and masks.
        caption: one sentence.
        answer: reply to one question.
        truth: what is really there, and the right reply to the question.
    """

    bundle: Path
    picture: Path
    classes: tuple[str, ...]
    found: DetectionResult
    caption: TextResult
    answer: TextResult
    truth: tuple[str, str]


def tiny_checkpoint() -> Path:
    """The checkpoint that comes with the package.

    Raises:
        CheckpointError: it is not installed.
    """
    import visionllm_edge.export.tiny

    folder = Path(visionllm_edge.export.tiny.__file__).parent / "checkpoint"
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            "demo: the tiny checkpoint is not part of this installation. Install from the "
            "repository, or give another checkpoint."
        )
    return folder


def run_demo(
    output: Path,
    *,
    checkpoint: Path | None = None,
    seed: int = DEMO_SEED,
    cache: StageCache | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
) -> DemoAnswers:
    """Compile into `output/bundle`, answer about a fresh scene, save `output/demo.png`.

    Raises:
        EdgeError: as `compile_checkpoint` and `VisionLLM`.
    """
    output.mkdir(parents=True, exist_ok=True)
    report = compile_checkpoint(
        checkpoint or tiny_checkpoint(),
        output / "bundle",
        cache=cache,
        jobs=jobs,
        progress=progress,
    )
    rng = np.random.default_rng(seed)
    scene = shapes_world.make_scene(rng, width=_SIDE_PX, height=_SIDE_PX, min_items=3)
    question = shapes_world.questions(scene, rng, 1)[0]
    classes = tuple(shapes_world.SHAPES)
    model = VisionLLM.load(report.bundle)
    found = model.segment(scene.image, classes)
    caption = model.caption(scene.image)
    answer = model.vqa(scene.image, question.text)
    picture = output / "demo.png"
    lines = [f"caption: {caption.text}", f"Q: {question.text}", f"A: {answer.text}"]
    draw_result(scene.image, found.detections, lines).save(picture)
    return DemoAnswers(
        bundle=report.bundle,
        picture=picture,
        classes=classes,
        found=found,
        caption=caption,
        answer=answer,
        truth=(shapes_world.caption(scene), question.answer),
    )
