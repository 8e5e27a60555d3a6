"""Size-dependent tensors against what one gets from a mask of pixels, step by step."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from visionllm_edge.export.components.geometry import (
    INVALID_LOGIT,
    Geometry,
    LevelGeometry,
    inverse_sigmoid,
    sine_embedding,
)

DIM, TEMPERATURE = 32, 20.0


def sine(angles: Tensor, features: int, temperature: float) -> Tensor:
    """Feature 2i is a sine, 2i+1 a cosine, of the same frequency temperature^(-2i/features)."""
    out = torch.zeros(*angles.shape, features)
    for i in range(features // 2):
        phase = angles / temperature ** (2 * i / features)
        out[..., 2 * i], out[..., 2 * i + 1] = phase.sin(), phase.cos()
    return out


def from_pixel_mask(bucket: tuple[int, int], valid: tuple[int, int]) -> LevelGeometry:
    """The same tensors, literally: draw the mask, resize it, count."""
    geometry = Geometry(*bucket)
    pixel_mask = torch.zeros(bucket)
    pixel_mask[: valid[0], : valid[1]] = 1
    parts: list[list[Tensor]] = [[] for _ in range(6)]
    for level, (h, w) in enumerate(geometry.shapes):
        mask = F.interpolate(pixel_mask[None, None], size=(h, w), mode="nearest")[0, 0]
        valid_h, valid_w = float(mask[:, 0].sum()), float(mask[0].sum())
        y, x = mask.cumsum(0), mask.cumsum(1)
        y = y / (y[-1:] + 1e-6) * 2 * math.pi
        x = x / (x[:, -1:] + 1e-6) * 2 * math.pi
        position = torch.cat([sine(y, DIM // 2, TEMPERATURE), sine(x, DIM // 2, TEMPERATURE)], -1)
        centres, proposals, usable = [], [], []
        size = 0.05 * 2**level
        for i in range(h):
            for j in range(w):
                centre = ((j + 0.5) / valid_w, (i + 0.5) / valid_h)
                box = (*centre, size, size)
                inside = bool(mask[i, j]) and all(0.01 < b < 0.99 for b in box)
                centres.append(centre)
                proposals.append(
                    [math.log(b / (1 - b)) for b in box] if inside else [INVALID_LOGIT] * 4
                )
                usable.append(float(inside))
        fields = (
            mask.flatten(),
            torch.tensor([[valid_w / w, valid_h / h]]),
            position.reshape(h * w, DIM),
            torch.tensor(centres),
            torch.tensor(proposals),
            torch.tensor(usable),
        )
        for part, tensor in zip(parts, fields, strict=True):
            part.append(tensor)
    return LevelGeometry(*(torch.cat(part) for part in parts))


def differing(found: LevelGeometry, expected: LevelGeometry) -> set[str]:
    """Names of the fields that are not the same up to rounding."""
    out = set()
    for item in dataclasses.fields(LevelGeometry):
        a, b = getattr(found, item.name), getattr(expected, item.name)
        assert a.shape == b.shape
        assert a.dtype == torch.float32
        if not torch.allclose(a, b, atol=2e-5, rtol=1e-5):
            out.add(item.name)
    return out


CASES = [
    ((416, 608), (416, 608)),
    ((416, 608), (397, 555)),
    ((416, 608), (415, 1)),
    ((416, 608), (1, 1)),
    ((128, 192), (128, 192)),
    ((128, 192), (85, 192)),
    ((192, 128), (192, 97)),
    ((96, 32), (33, 31)),
    ((32, 96), (17, 65)),
]


@pytest.mark.parametrize(("bucket", "valid"), CASES, ids=str)
def test_equals_the_pixel_mask(bucket: tuple[int, int], valid: tuple[int, int]) -> None:
    found = Geometry(*bucket).levels(torch.tensor(valid), DIM, TEMPERATURE)
    assert differing(found, from_pixel_mask(bucket, valid)) == set()


@pytest.mark.parametrize(
    "fault", ["mask", "valid_ratios", "positions", "reference", "proposals", "proposals_ok"]
)
def test_exchanging_x_and_y_shows(fault: str) -> None:
    bucket, valid = (64, 96), (50, 61)
    found = Geometry(*bucket).levels(torch.tensor(valid), DIM, TEMPERATURE)
    if fault in ("mask", "proposals_ok"):
        turned = Geometry(*bucket[::-1]).levels(torch.tensor(valid[::-1]), DIM, TEMPERATURE)
        value = getattr(turned, fault)
    elif fault == "positions":
        value = found.positions.roll(DIM // 2, dims=-1)
    elif fault == "proposals":
        value = found.proposals[:, [1, 0, 2, 3]]
    else:
        value = getattr(found, fault).flip(-1)
    wrong = dataclasses.replace(found, **{fault: value})
    assert differing(wrong, from_pixel_mask(bucket, valid)) == {fault}


def test_known_sizes() -> None:
    geometry = Geometry(416, 608)
    assert geometry.shapes == ((52, 76), (26, 38), (13, 19), (7, 10))
    assert geometry.size == 52 * 76 + 26 * 38 + 13 * 19 + 70
    assert geometry.starts == (0, 3952, 4940, 5187)
    assert geometry.spatial_shapes().dtype == torch.int32
    assert geometry.spatial_shapes().tolist() == [[52, 76], [26, 38], [13, 19], [7, 10]]
    assert geometry.level_start_index().tolist() == [0, 3952, 4940, 5187]
    assert geometry.full_size().tolist() == [416, 608]
    sizes = {(800, 1088): 18_071, (800, 1344): 22_323, (800, 800): 13_294}
    assert {bucket: Geometry(*bucket).size for bucket in sizes} == sizes


@pytest.mark.parametrize("side", range(32, 1345, 32))
def test_nearest_rows_are_those_of_torch(side: int) -> None:
    # Which pixel a row of a level looks at, for every side that a bucket can have.
    rows = torch.arange(side, dtype=torch.float32)
    geometry = Geometry(side, side)
    for h, _ in geometry.shapes:
        theirs = F.interpolate(rows[None, None], size=h, mode="nearest")[0, 0]
        ours = torch.arange(h) * side // h
        assert ours.tolist() == theirs.int().tolist()


def test_invalid_proposals_become_exactly_one() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        logits = torch.tensor([INVALID_LOGIT], dtype=dtype)
        assert float(logits.sigmoid()) == 1.0
        assert float((logits - 50).sigmoid()) == 1.0


@pytest.mark.parametrize(("features", "temperature"), [(32, 10000.0), (16, 20.0), (128, 20.0)])
def test_sine_embedding(features: int, temperature: float) -> None:
    angles = torch.linspace(0, 40, 24).reshape(4, 6)
    found = sine_embedding(angles, features, temperature)
    torch.testing.assert_close(found, sine(angles, features, temperature), atol=2e-5, rtol=0)


def test_inverse_sigmoid() -> None:
    x = torch.tensor([1e-4, 0.2, 0.5, 0.9, 1 - 1e-4])
    torch.testing.assert_close(inverse_sigmoid(x), torch.logit(x))
    torch.testing.assert_close(inverse_sigmoid(x.sigmoid()), x)
    ends = inverse_sigmoid(torch.tensor([-1.0, 0.0, 1.0, 2.0]))
    limit = math.log(1e5)
    torch.testing.assert_close(ends, torch.tensor([-limit, -limit, limit, limit]))
