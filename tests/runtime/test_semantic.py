from __future__ import annotations

import numpy as np
import pytest

from visionllm_edge.runtime.resize import bilinear_matrix
from visionllm_edge.runtime.semantic import SemanticSum, sigmoid

VALID, ORIGINAL = (60, 90), (120, 150)


@pytest.fixture
def queries() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 3, (7, 16, 24)).astype(np.float32)
    return rng.uniform(0, 1, (7, 3)).astype(np.float32), logits


def plain(scores: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Step by step, every mask at its full size: [C,H,W]."""
    full = []
    for one in logits:
        large = bilinear_matrix(16, 64) @ one @ bilinear_matrix(24, 96).T
        cut = large[: VALID[0], : VALID[1]]
        full.append(bilinear_matrix(60, 120) @ cut @ bilinear_matrix(90, 150).T)
    masks = 1 / (1 + np.exp(-np.stack(full).astype(np.float64)))
    summed: np.ndarray = np.einsum("qc,qhw->chw", scores, masks)
    return summed


def summed(scores: np.ndarray, logits: np.ndarray, parts: int, **options: int) -> SemanticSum:
    out = SemanticSum(3, valid_size=VALID, original_size=ORIGINAL, **options)
    for one, other in zip(
        np.array_split(scores, parts), np.array_split(logits, parts), strict=True
    ):
        out.add(one, other)
    return out


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_labels_are_those_of_the_formula(
    queries: tuple[np.ndarray, np.ndarray], parts: int
) -> None:
    expected = plain(*queries)
    labels = summed(*queries, parts).labels(0.0)
    assert labels.dtype == np.int16 and labels.shape == ORIGINAL
    np.testing.assert_array_equal(labels, expected.argmax(axis=0))


def test_pixels_below_the_threshold_belong_to_none(
    queries: tuple[np.ndarray, np.ndarray],
) -> None:
    expected = plain(*queries).max(axis=0)
    threshold = float(np.median(expected))
    labels = summed(*queries, 2).labels(threshold)
    clear = np.abs(expected - threshold) > 1e-4
    np.testing.assert_array_equal((labels == -1)[clear], (expected < threshold)[clear])
    assert 0.4 < (labels == -1).mean() < 0.6


def test_a_large_picture_is_added_at_the_mask_heads_size() -> None:
    """One flat area per query: both orders agree but for the edges."""
    logits = np.full((2, 16, 24), -8.0, np.float32)
    logits[0, :, :12], logits[1, :, 12:] = 8.0, 8.0
    scores = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]], np.float32)
    early = summed(scores, logits, 1).labels(0.5)
    late = summed(scores, logits, 1, largest_bytes=1).labels(0.5)
    assert (early == late).mean() > 0.97
    assert not late[:, 10].any() and late[:, 140].all()
    assert set(np.unique(late)) == {0, 1}


def test_the_first_of_equal_classes_wins() -> None:
    logits = np.full((1, 16, 24), 20.0, np.float32)
    labels = summed(np.array([[0.5, 0.5, 0.5]], np.float32), logits, 1).labels(0.0)
    assert not labels.any()


def test_sigmoid_does_not_overflow() -> None:
    with np.errstate(all="raise", under="ignore"):
        values = sigmoid(np.array([-1e5, 0.0, 1e5], np.float32))
    np.testing.assert_allclose(values, [0, 0.5, 1])
