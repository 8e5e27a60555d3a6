"""Tiles for the vision encoder and the detector's picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from visionllm_edge.runtime.errors import ConfigError
from visionllm_edge.runtime.preprocess import (
    DetectorInput,
    choose_grid,
    clip_tiles,
    detector_input,
    grid_candidates,
    pose_input,
    pose_size,
)
from visionllm_edge.runtime.resize import resize_bilinear

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, (height, width, 3), dtype=np.uint8)


def prepared(
    image: np.ndarray,
    shortest: int = 64,
    longest: int = 96,
    buckets: Sequence[tuple[int, int]] = ((64, 64), (64, 96), (96, 64)),
) -> DetectorInput:
    return detector_input(
        image, shortest=shortest, longest=longest, divisor=32, buckets=buckets, mean=MEAN, std=STD
    )


@pytest.mark.parametrize(
    ("width", "height", "grid"),
    [
        (640, 480, (2, 2)),
        (500, 375, (1, 1)),
        (1920, 1080, (2, 1)),
        (1333, 800, (2, 1)),
        (1000, 300, (3, 1)),
        (1024, 1024, (2, 2)),
        (336, 336, (1, 1)),
        # Tall ones mirror wide ones; 3:2 is as far from 1 as from 2, so the area decides.
        (300, 1000, (1, 3)),
        (150, 100, (1, 1)),
        (420, 280, (2, 1)),
        (600, 400, (2, 2)),
        (20_000, 2, (4, 1)),
    ],
)
def test_grid(width: int, height: int, grid: tuple[int, int]) -> None:
    assert choose_grid(width, height, image_size=336, max_tiles=4) == grid


def test_grids_are_tried_by_area() -> None:
    assert grid_candidates(4) == [
        (1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (1, 4), (4, 1), (2, 2),
    ]  # fmt: skip


def test_tiles_are_cut_row_by_row_and_the_whole_comes_last() -> None:
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    for i, (top, left) in enumerate([(0, 0), (0, 16), (16, 0), (16, 16)]):
        image[top : top + 16, left : left + 16] = (i + 1) * 50
    tiles = clip_tiles(image, image_size=16, max_tiles=4, mean=(0, 0, 0), std=(1, 1, 1))
    assert tiles.shape == (5, 3, 16, 16)
    assert tiles.dtype == np.float32 and tiles.flags.c_contiguous
    for i in range(4):
        assert np.allclose(tiles[i], (i + 1) * 50 / 255)
    small = Image.fromarray(image).resize((16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(tiles[4], np.asarray(small, np.float32).transpose(2, 0, 1) / 255)


def test_one_tile_is_normalised_per_channel() -> None:
    image = picture(16, 16)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    tiles = clip_tiles(image, image_size=16, max_tiles=4, mean=mean, std=std)
    assert tiles.shape == (1, 3, 16, 16)
    for c in range(3):
        assert np.allclose(tiles[0, c], (image[:, :, c] / 255 - mean[c]) / std[c], atol=1e-6)


@pytest.mark.parametrize(
    ("size", "valid"),
    [
        ((480, 640), (800, 1067)),  # short side 800
        ((427, 640), (800, 1199)),
        ((300, 1000), (400, 1333)),  # long side 1333
        ((1333, 800), (1333, 800)),
    ],
)
def test_released_sizes_without_buckets(size: tuple[int, int], valid: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), dtype=np.uint8)
    got = prepared(image, shortest=800, longest=1333, buckets=())
    assert got.valid_size == valid and got.original_size == size
    assert got.bucket == tuple(-(-side // 32) * 32 for side in valid)


def test_content_is_resized_normalised_and_padded() -> None:
    image = picture(50, 60)
    got = prepared(image)
    assert got.valid_size == (64, 77) and got.bucket == (64, 96)
    assert got.pixels.shape == (1, 3, 64, 96) and got.pixels.dtype == np.float32
    exact = (resize_bilinear(image, 64, 77) - np.array(MEAN)) / np.array(STD)
    assert np.allclose(got.pixels[0, :, :64, :77], exact.transpose(2, 0, 1), atol=1e-5)
    assert not got.pixels[:, :, :, 77:].any()


def test_a_fitting_picture_is_not_resampled() -> None:
    image = picture(64, 96)
    got = prepared(image)
    assert np.allclose(got.pixels[0, 0], (image[:, :, 0] - MEAN[0]) / STD[0], atol=1e-5)


@pytest.mark.parametrize(
    ("size", "buckets", "valid", "bucket"),
    [
        ((64, 64), [(64, 96), (64, 64)], (64, 64), (64, 64)),  # the smallest that holds it
        ((64, 80), [(64, 64), (64, 96)], (64, 80), (64, 96)),
        # 96x64 fits nowhere; both ask for the same shrinking, the smaller bucket is enough.
        ((96, 64), [(64, 96), (64, 64)], (64, 43), (64, 64)),
        ((60, 90), [(32, 32), (32, 64)], (32, 48), (32, 64)),  # the one that keeps most
        ((2, 4000), [(64, 96)], (1, 96), (64, 96)),  # a thread keeps one row
    ],
)
def test_bucket_choice(
    size: tuple[int, int],
    buckets: list[tuple[int, int]],
    valid: tuple[int, int],
    bucket: tuple[int, int],
) -> None:
    got = prepared(picture(*size), buckets=buckets)
    assert (got.valid_size, got.bucket) == (valid, bucket)
    assert got.pixels.shape[2:] == bucket


@pytest.mark.parametrize("bucket", [(64, 90), (0, 64)])
def test_a_bucket_off_the_grid_is_refused(bucket: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="multiples of 32"):
        prepared(picture(8, 8), buckets=[bucket])


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((480, 640), (800, 1066)),  # 1066.67 is cut, where the detector rounds to 1067
        ((640, 480), (1066, 800)),
        ((500, 500), (800, 800)),
        ((500, 1000), (666, 1332)),  # 2000 would be too long: 666.5 rounds to the even 666
        ((1000, 300), (1333, 400)),
        ((1, 5000), (1, 5000)),
    ],
)
def test_size_of_the_keypoint_decoders_picture(
    size: tuple[int, int], resized: tuple[int, int]
) -> None:
    assert pose_size(size, shortest=800, longest=1333) == resized


def posed(image: np.ndarray, buckets: Sequence[tuple[int, int]] = ()) -> DetectorInput:
    return pose_input(
        image, shortest=64, longest=96, divisor=32, buckets=buckets, mean=MEAN, std=STD
    )


def test_the_keypoint_decoders_picture_is_resized_by_pillow_and_padded() -> None:
    image = picture(100, 130)
    ours = posed(image)
    assert (ours.valid_size, ours.bucket, ours.original_size) == ((64, 83), (64, 96), (100, 130))
    theirs = Image.fromarray(image).resize((83, 64), Image.Resampling.BILINEAR)
    expected = (np.asarray(theirs, np.float32) - MEAN) / np.array(STD)
    np.testing.assert_allclose(ours.pixels[0, :, :, :83].transpose(1, 2, 0), expected, atol=1e-5)
    assert not ours.pixels[..., 83:].any()
    assert ours.pixels.dtype == np.float32


def test_a_picture_that_no_pose_bucket_holds_is_made_smaller() -> None:
    assert posed(picture(64, 90), buckets=((64, 64),)).valid_size == (46, 64)
    assert posed(picture(64, 90), buckets=((64, 64), (96, 96))).bucket == (96, 96)
