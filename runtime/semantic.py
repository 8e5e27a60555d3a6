"""A class for every pixel: the detector's queries, each with class scores and a mask, added up.

A pixel's score for a class is the sum over all queries of the query's score for that class times
its mask there. The best class wins.

Source: VisionLLM v2 (arXiv 2406.08394), evaluation of semantic segmentation. The threshold below
which a pixel belongs to no class is an addition of products; 0 gives every pixel a class, as the
benchmark does.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from visionllm_edge.runtime.resize import bilinear_matrix

__all__ = ["SemanticSum", "sigmoid"]

Float = npt.NDArray[np.float32]
# The mask head works at a quarter of the detector's input.
_MASK_STRIDE = 4
# Scores of all classes at the original size, up to which masks are enlarged before they are added.
_LARGEST_BYTES = 256 << 20


class SemanticSum:
    """Adds queries up, a few at a time: all masks at once would be the chain's largest tensor.

    Args:
        classes: how many.
        valid_size: (height, width) of the un-padded part of the detector's input.
        original_size: (height, width) of the result.
        largest_bytes: when the scores of all classes at the original size take more, they are
            added at the mask head's own size and enlarged afterwards.
    """

    def __init__(
        self,
        classes: int,
        *,
        valid_size: tuple[int, int],
        original_size: tuple[int, int],
        largest_bytes: int = _LARGEST_BYTES,
    ) -> None:
        """Start with nothing added."""
        self._classes = classes
        self._valid = valid_size
        self._original = original_size
        self._early = classes * original_size[0] * original_size[1] * 4 <= largest_bytes
        self._sum: Float | None = None

    def add(self, scores: Float, mask_logits: Float) -> None:
        """Add queries.

        Args:
            scores: float32 [q,C], 0..1.
            mask_logits: float32 [q,h,w] at stride 4 of the padded detector input.
        """
        if self._early:
            rows, columns = self._axes(mask_logits)
            mask_logits = np.stack([rows @ one @ columns for one in mask_logits])
        added = scores.T @ sigmoid(mask_logits).reshape(len(mask_logits), -1)
        shaped = added.reshape(self._classes, *mask_logits.shape[1:])
        self._sum = shaped if self._sum is None else self._sum + shaped

    def labels(self, threshold: float) -> npt.NDArray[np.int16]:
        """The best class of every pixel, int16 [H,W]; -1 where none reaches the threshold.

        Of classes with equal scores the first one wins.
        """
        assert self._sum is not None, "queries were added"
        best = np.full(self._original, -np.inf, np.float32)
        labels = np.full(self._original, -1, np.int16)
        for index, scores in enumerate(self._sum):
            if not self._early:
                rows, columns = self._axes(self._sum)
                scores = rows @ scores @ columns
            better = scores > best
            best[better], labels[better] = scores[better], index
        labels[best < threshold] = -1
        return labels

    def _axes(self, maps: Float) -> tuple[Float, Float]:
        """Both axes from the mask head's size to the original one, as matrices."""
        rows, columns = (
            bilinear_matrix(valid, original) @ bilinear_matrix(size, size * _MASK_STRIDE)[:valid]
            for size, valid, original in zip(
                maps.shape[1:], self._valid, self._original, strict=True
            )
        )
        return rows, columns.T


def sigmoid(logits: Float) -> Float:
    """Sigmoid of any finite logits, float32."""
    # Written with tanh so that large negative logits do not overflow.
    out: Float = (0.5 * (1.0 + np.tanh(0.5 * logits))).astype(np.float32)
    return out
