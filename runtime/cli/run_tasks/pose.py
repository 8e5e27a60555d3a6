"""Tasks of the keypoint decoder."""

from __future__ import annotations

from typing import cast

import click

from visionllm_edge.runtime.cli.run_tasks.base import Option, Request, RunTask
from visionllm_edge.runtime.keypoints import PRESETS
from visionllm_edge.runtime.model import Mode, VisionLLM
from visionllm_edge.runtime.results import Result

__all__ = ["OPTIONS", "TASKS"]

OPTIONS: tuple[Option, ...] = (
    click.option(
        "--keypoints",
        default="coco17",
        show_default=True,
        help=f"Pose: a preset ({', '.join(PRESETS)}), or names with commas, 'nose,left eye'.",
    ),
    click.option(
        "--nms-iou",
        type=click.FloatRange(0.0, 1.0),
        default=0.9,
        show_default=True,
        help="Pose: an instance that overlaps a better one by more is left out.",
    ),
    click.option("--benchmark", is_flag=True, help="Pose: leave none out, as the authors measure."),
)


def _pose(model: VisionLLM, request: Request) -> Result:
    given = request.given
    keypoints: str = given["keypoints"]
    return model.pose(
        request.picture,
        given["classes"].split(","),
        [name for name in keypoints.split(",") if name] if "," in keypoints else keypoints,
        mode=cast(Mode, given["mode"]),
        threshold=request.threshold(0.1),
        nms_iou=given["nms_iou"],
        top_k=given["top_k"],
        benchmark=given["benchmark"],
        config=request.config,
        stream=request.stream,
    )


TASKS: tuple[RunTask, ...] = (
    RunTask(
        "pose",
        _pose,
        needs=("classes",),
        takes=("keypoints", "mode", "threshold", "nms_iou", "top_k", "benchmark"),
    ),
)
