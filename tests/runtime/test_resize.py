"""Bilinear resizing against a scalar loop that can be read."""

from __future__ import annotations

import math

import numpy as np
import pytest

from visionllm_edge.runtime.resize import bilinear_matrix, resize_bilinear

SIZES = [(7, 5, 3, 9), (4, 4, 8, 8), (9, 13, 9, 6), (5, 2, 1, 1), (2, 3, 11, 2), (1, 1, 4, 3)]


def sample(image: np.ndarray, height: int, width: int, y: int, x: int) -> np.ndarray:
    """One output pixel by the definition: half-pixel centres, held inside the picture."""
    rows, columns = image.shape[:2]
    v = min(max((y + 0.5) * rows / height - 0.5, 0.0), rows - 1.0)
    u = min(max((x + 0.5) * columns / width - 0.5, 0.0), columns - 1.0)
    top, left = math.floor(v), math.floor(u)
    bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
    b, a = v - top, u - left
    return np.asarray(
        image[top, left] * (1 - b) * (1 - a)
        + image[top, right] * (1 - b) * a
        + image[bottom, left] * b * (1 - a)
        + image[bottom, right] * b * a
    )


@pytest.mark.parametrize(("h", "w", "height", "width"), SIZES)
def test_image_equals_the_scalar_loop(h: int, w: int, height: int, width: int) -> None:
    image = np.random.default_rng(1).integers(0, 256, (h, w, 3), dtype=np.uint8)
    exact = np.array(
        [[sample(image, height, width, y, x) for x in range(width)] for y in range(height)]
    )
    ours = resize_bilinear(image, height, width)
    assert ours.shape == (height, width, 3) and ours.dtype == np.uint8
    assert np.abs(ours - exact).max() <= 0.5 + 1e-4


def test_same_size_changes_nothing() -> None:
    image = np.random.default_rng(2).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    assert np.array_equal(resize_bilinear(image, 6, 7), image)


def test_shrinking_does_not_smooth() -> None:
    stripes = np.zeros((4, 40, 3), dtype=np.uint8)
    stripes[:, 2::5] = 255
    # Every fifth column is read exactly, so the stripe stays fully bright.
    assert (resize_bilinear(stripes, 4, 8) == 255).all()


@pytest.mark.parametrize(("size_in", "size_out"), [(5, 13), (13, 5), (8, 32), (1, 6), (6, 1)])
def test_matrix_rows_are_weights_of_two_neighbours(size_in: int, size_out: int) -> None:
    matrix = bilinear_matrix(size_in, size_out)
    assert np.allclose(matrix.sum(axis=1), 1.0, atol=1e-6)
    ramp = np.arange(size_in, dtype=np.float64)[:, None]
    exact = [sample(ramp, size_out, 1, y, 0) for y in range(size_out)]
    assert np.allclose(matrix @ ramp[:, 0], exact, atol=1e-5)
