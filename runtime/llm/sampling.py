"""Picks the next token: greedy, or sampled with temperature, top-k and top-p.

Knows logits and ids only. Sampling is reproducible: a seed gives the same tokens on every machine
(NumPy's PCG64 generator; the logits themselves differ in the last bits between machines).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.runtime.errors import InputError

__all__ = ["GenerationConfig", "Sampler"]


@dataclass(frozen=True)
class GenerationConfig:
    """How an answer is generated. The defaults are the authors': greedy.

    Attributes:
        max_new_tokens: cap on generated ids; super-link rows do not count.
        min_new_tokens: the end token is not picked before so many ids.
        temperature: 0 is greedy.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set whose probability reaches p; 1 keeps all.
        seed: of the random generator; None draws one from the system.
        max_groups: cap on routing tokens in one answer, and so on decoder work. A routing token
            beyond it ends the answer.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    max_groups: int = 256
    min_new_tokens: int = 0

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        checks = (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            (
                "min_new_tokens",
                0 <= self.min_new_tokens <= self.max_new_tokens,
                f"between 0 and max_new_tokens ({self.max_new_tokens})",
            ),
            ("temperature", 0.0 <= self.temperature < float("inf"), "a number of at least 0"),
            ("top_k", self.top_k >= 0, "at least 0 (0 keeps all)"),
            ("top_p", 0.0 < self.top_p <= 1.0, "above 0 and at most 1"),
            ("seed", self.seed is None or self.seed >= 0, "None or at least 0"),
            ("max_groups", 0 <= self.max_groups <= 256, "between 0 and 256"),
        )
        for name, good, expected in checks:
            if not good:
                raise InputError(
                    f"generation option {name}: expected {expected}, got {getattr(self, name)}. "
                    "Change the option."
                )


class Sampler:
    """Draws tokens under one configuration.

    Args:
        config: the options.
        suppressed: ids that are never drawn (position markers, image patches, padding).
        size: ids from here on have no meaning (a vocabulary padded to a round number).
    """

    def __init__(
        self, config: GenerationConfig, *, suppressed: Iterable[int] = (), size: int | None = None
    ) -> None:
        """Seed the generator."""
        self._config = config
        self._suppressed = np.array(sorted(set(suppressed)), dtype=np.int64)
        self._size = size
        self._random = np.random.default_rng(config.seed)

    def pick(
        self,
        logits_V: NDArray[np.float32],  # noqa: N803 (axis letters)
        *,
        forbidden: int | None = None,
    ) -> int:
        """Next id from the logits of one position; the array is left as it is.

        ``forbidden`` is an id that is not drawn this time.
        """
        scores = logits_V[: self._size].astype(np.float64)
        if forbidden is not None:
            scores[forbidden] = -np.inf
        scores[self._suppressed[self._suppressed < len(scores)]] = -np.inf
        config = self._config
        if config.temperature == 0.0 or config.top_k == 1:
            return int(scores.argmax())
        scores /= config.temperature
        order = np.argsort(-scores, kind="stable")
        if config.top_k:
            order = order[: config.top_k]
        weights = np.exp(scores[order] - scores[order[0]])
        weights /= weights.sum()
        if config.top_p < 1.0:
            # A token stays if what stands before it has not reached p yet: never fewer than one.
            kept = int(np.searchsorted(np.cumsum(weights), config.top_p)) + 1
            order, weights = order[:kept], weights[:kept]
        threshold = self._random.random() * weights.sum()
        drawn = int(np.searchsorted(np.cumsum(weights), threshold, side="right"))
        return int(order[min(drawn, len(order) - 1)])
