"""Selection and masks against plain definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from visionllm_edge.runtime.errors import BackendError
from visionllm_edge.runtime.postprocess import Selection, best_of_each, masks, select
from visionllm_edge.runtime.resize import bilinear_matrix


def chosen(
    logits: np.ndarray, boxes: np.ndarray | None = None, top_k: int = 100, threshold: float = 0.0
) -> Selection:
    if boxes is None:
        boxes = np.full((len(logits), 4), 0.5, dtype=np.float32)
    return select(logits, boxes, top_k=top_k, threshold=threshold, image_size=(100, 200))


@pytest.mark.parametrize("top_k", [1, 7, 12, 500])
def test_best_pairs_in_order(top_k: int) -> None:
    # Few different values, so that ties fall on the border.
    logits = np.random.default_rng(0).integers(-2, 3, (20, 5)).astype(np.float32)
    pairs = sorted(
        (-logits[q, c], q, c) for q in range(logits.shape[0]) for c in range(logits.shape[1])
    )[:top_k]
    got = chosen(logits, top_k=top_k)
    assert list(zip(got.queries, got.labels, strict=True)) == [(q, c) for _, q, c in pairs]
    assert np.allclose(got.scores, [1 / (1 + math.exp(v)) for v, _, _ in pairs], atol=1e-6)


def test_threshold_and_missing_classes() -> None:
    logits = np.array([[0.0, -np.inf], [2.0, -3.0]], dtype=np.float32)
    assert list(chosen(logits, threshold=0.5).queries) == [1, 0]
    assert list(chosen(logits, threshold=0.51).queries) == [1]
    assert chosen(logits, threshold=0.99).boxes_xyxy.shape == (0, 4)
    assert list(chosen(logits).scores[-1:]) == [0.0]
    assert chosen(logits, top_k=0).queries.size == 0


def test_boxes_are_corners_in_pixels_and_not_cut() -> None:
    boxes = np.array([[0.5, 0.5, 0.2, 0.4], [0.0, 1.0, 0.1, 0.2]], dtype=np.float32)
    got = chosen(np.array([[1.0], [0.0]], dtype=np.float32), boxes)
    assert np.allclose(got.boxes_xyxy, [[80, 30, 120, 70], [-10, 90, 10, 110]], atol=1e-4)


@pytest.mark.parametrize("where", ["logits", "boxes"])
def test_outputs_that_are_no_numbers_are_refused(where: str) -> None:
    logits, boxes = np.zeros((3, 2), np.float32), np.zeros((3, 4), np.float32)
    {"logits": logits, "boxes": boxes}[where][1, 1] = np.nan
    with pytest.raises(BackendError, match="not finite"):
        chosen(logits, boxes)


def resized(values: np.ndarray, height: int, width: int) -> np.ndarray:
    rows, columns = (
        bilinear_matrix(values.shape[0], height),
        bilinear_matrix(values.shape[1], width),
    )
    return np.asarray(rows.astype(np.float64) @ values @ columns.T)


@pytest.mark.parametrize(
    ("size", "valid", "original"),
    [((16, 24), (64, 77), (50, 60)), ((8, 8), (32, 32), (32, 32)), ((8, 16), (20, 64), (111, 350))],
)
def test_masks_take_the_three_steps(
    size: tuple[int, int], valid: tuple[int, int], original: tuple[int, int]
) -> None:
    logits = np.random.default_rng(3).normal(0, 1, (3, *size)).astype(np.float32)
    got = masks(logits, valid_size=valid, original_size=original)
    assert got.shape == (3, *original) and got.dtype == np.bool_
    for ours, one in zip(got, logits, strict=True):
        steps = resized(resized(one, size[0] * 4, size[1] * 4)[: valid[0], : valid[1]], *original)
        clear = np.abs(steps) > 1e-5
        assert clear.mean() > 0.99
        assert np.array_equal(ours[clear], steps[clear] > 0)


def test_masks_equal_torch() -> None:
    torch = pytest.importorskip("torch")
    logits = np.random.default_rng(5).normal(0, 1, (2, 16, 24)).astype(np.float32)
    big = torch.nn.functional.interpolate(
        torch.from_numpy(logits)[None], scale_factor=4, mode="bilinear", align_corners=False
    )
    whole = torch.nn.functional.interpolate(
        big[:, :, :64, :77], size=(50, 60), mode="bilinear", align_corners=False
    )[0].numpy()
    ours = masks(logits, valid_size=(64, 77), original_size=(50, 60))
    assert (ours != (whole > 0))[np.abs(whole) > 1e-5].sum() == 0


def test_no_masks_at_all() -> None:
    got = masks(np.zeros((0, 8, 8), np.float32), valid_size=(32, 32), original_size=(10, 12))
    assert got.shape == (0, 10, 12)


def test_best_of_each_takes_one_query_per_class() -> None:
    """Whatever its score, in the order of the classes, the first of equal ones."""
    logits = np.array([[-9.0, 2.0], [-8.0, 2.0], [-8.0, 1.0]], np.float32)
    boxes = np.array([[0.5, 0.5, 0.2, 0.4], [0.1, 0.2, 0.2, 0.2], [0.9, 0.9, 0.1, 0.1]], np.float32)
    chosen = best_of_each(logits, boxes, image_size=(10, 20))
    assert chosen.labels.tolist() == [0, 1] and chosen.queries.tolist() == [1, 0]
    np.testing.assert_allclose(chosen.scores, 1 / (1 + np.exp([8.0, -2.0])), rtol=1e-5)
    np.testing.assert_allclose(chosen.boxes_xyxy, [[0, 1, 4, 3], [8, 3, 12, 7]], atol=1e-5)


def test_best_of_each_refuses_what_is_no_number() -> None:
    with pytest.raises(BackendError, match="not finite"):
        best_of_each(
            np.full((2, 1), np.nan, np.float32), np.zeros((2, 4), np.float32), image_size=(4, 4)
        )
