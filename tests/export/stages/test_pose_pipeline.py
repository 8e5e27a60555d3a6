"""The runtime's chain over the real components: a picture in, keypoints in its pixels out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from tests.export.components.weights import randomise
from tests.export.small_checkpoint import small_config
from tests.export.small_pose import with_pose
from visionllm_edge.export.components.geometry import Geometry
from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.config import config_from_dict
from visionllm_edge.export.torch_stages import TorchStages
from visionllm_edge.runtime.manifest import Normalization, PoseSpec
from visionllm_edge.runtime.pipelines.picture import Picture
from visionllm_edge.runtime.pipelines.pose import (
    BENCHMARK,
    PoseDecoder,
    PoseSelecting,
)

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
BUCKET = (96, 128)
OBJECTS, NAMES = ["cat", "dog"], ["nose", "left eye", "tail"]
Float = NDArray[np.float32]


@pytest.fixture(scope="module")
def model() -> VisionLLM:
    torch.manual_seed(0)
    config = config_from_dict(with_pose(small_config(600)), name="small")
    out = VisionLLM(config).eval().requires_grad_(False)
    randomise(out.unipose)
    return out


def decoder(model: VisionLLM) -> PoseDecoder:
    spec = PoseSpec(
        buckets=(BUCKET,),
        shortest_edge=96,
        longest_edge=128,
        divisor=32,
        max_objects=100,
        max_keypoints=20,
        num_instances=4,
    )
    return PoseDecoder(TorchStages(model), spec, Normalization(MEAN, STD))


def picture(height: int, width: int) -> Picture:
    rgb = np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Picture("key", rgb)


def states(count: int, seed: int) -> Float:
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, (count, 4, 32)).astype(np.float32)


def test_the_chain_gives_what_the_components_give(model: VisionLLM) -> None:
    """Everything by hand from the specification: resize, pad, four parts, scale."""
    shown = picture(150, 180)
    objects, points = states(2, 1), states(3, 2)
    chain = decoder(model)
    ours = chain.find(shown, objects, points, OBJECTS, NAMES, groups=[0, 1], selecting=BENCHMARK)

    # 96 on the short side would make the long one 115, which is below 128.
    resized = Image.fromarray(shown.rgb).resize((115, 96), Image.Resampling.BILINEAR)
    pixels = torch.zeros(1, 3, *BUCKET)
    content = (np.asarray(resized, np.float32) - MEAN) / np.array(STD)
    pixels[0, :, :96, :115] = torch.from_numpy(content.astype(np.float32)).permute(2, 0, 1)
    size, geometry = torch.tensor([96, 115]), Geometry(*BUCKET)
    pose = model.unipose
    memory, text = pose.encode(
        *pose.backbone_maps(pixels), size, torch.from_numpy(objects)[None], geometry
    )
    instances, boxes = pose.instances(memory, text, size, geometry)
    logits, boxes, keypoints = pose.keypoints(
        memory, text, instances, boxes, torch.from_numpy(points)[None], size, geometry
    )

    assert len(ours) == logits[0].numel() == 8
    order = logits[0].flatten().argsort(descending=True)
    for found, place in zip(ours, order.tolist(), strict=True):
        instance, label = divmod(place, 2)
        assert (found.label, found.group) == (OBJECTS[label], label)
        assert found.score == pytest.approx(logits[0, instance, label].sigmoid().item(), abs=1e-5)
        expected = keypoints[0, instance] * torch.tensor([180.0, 150.0])
        places = [(k.x, k.y) for k in found.keypoints]
        np.testing.assert_allclose(places, expected, atol=1e-2)
        x, y, width, height = (boxes[0, instance] * torch.tensor([180.0, 150.0] * 2)).tolist()
        corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        assert found.box_xyxy == pytest.approx(corners, abs=1e-2)


def test_keypoints_follow_their_names(model: VisionLLM) -> None:
    """A second question about a picture, and one with another third name."""
    shown = picture(96, 128)
    chain = decoder(model)
    objects, points = states(1, 1), states(4, 2)

    def places(order: list[int]) -> Float:
        (found,) = chain.find(
            shown, objects, points[order], ["cat"], [f"p{i}" for i in order],
            groups=[0], selecting=PoseSelecting(0.0, None, 1),
        )  # fmt: skip
        assert [k.name for k in found.keypoints] == [f"p{i}" for i in order]
        return np.array([(k.x, k.y) for k in found.keypoints], np.float32)

    first = places([0, 1, 2])
    np.testing.assert_array_equal(first, places([0, 1, 2]))
    assert np.abs(first[2] - places([0, 1, 3])[2]).max() > 0.01
