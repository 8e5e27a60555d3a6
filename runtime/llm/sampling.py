"""Picks the next token: greedy, or sampled with temperature, top-k and top-p.

Knows logits and ids only. Sampling is reproducible: a seed gives the same tokens on every machine
(NumPy's PCG64 generator; the logits themselves differ in the last bits between machines).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.runtime.errors import BackendError, InputError

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
        lookup_tokens: how many tokens to guess ahead from what the context holds already, and to
            check in one run; 0 guesses nothing. Every token is still picked from the logits of its
            own place. Those are the same to the last bit where the kernels sum several rows as
            they sum one: ours do for up to 4 guesses (and fewer than 12 rows times query heads of
            a key head). Elsewhere rounding may tip two tokens that are about as likely.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    max_groups: int = 256
    min_new_tokens: int = 0
    lookup_tokens: int = 0

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
            ("lookup_tokens", 0 <= self.lookup_tokens <= 64, "between 0 (off) and 64"),
        )
        for name, good, expected in checks:
            if not good:
                raise InputError(
                    f"generation option {name}: expected {expected}, got {getattr(self, name)}. "
                    "Change the option."
                )

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken every time."""
        return self.temperature == 0.0 or self.top_k == 1


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
        self._suppressed = frozenset(suppressed)
        self._suppressed_ids = np.array(sorted(self._suppressed), dtype=np.int64)
        self._size = size
        self._random = np.random.default_rng(config.seed)

    def pick(
        self,
        logits_V: NDArray[np.float32],  # noqa: N803 (axis letters)
        *,
        forbidden: Collection[int] = (),
        allowed: Sequence[int] | None = None,
    ) -> int:
        """Next id from the logits of one position; the array is left as it is.

        Args:
            logits_V: the logits.
            forbidden: ids that are not drawn this time.
            allowed: the only ids that may be drawn this time, ascending; they come before every
                other rule.

        Raises:
            BackendError: the logits are not numbers.
        """
        if allowed is not None:
            ids = np.asarray(allowed, dtype=np.int64)
            return int(ids[self._draw(_checked(logits_V[ids]))])
        logits = logits_V[: self._size]
        if self._config.greedy:
            # Nearly always the largest one may be taken, and nothing has to be copied.
            best = int(logits.argmax())
            if best not in forbidden and best not in self._suppressed:
                _check(logits[best])
                return best
        scores = logits.copy()
        if forbidden:
            scores[list(forbidden)] = -np.inf
        scores[self._suppressed_ids[self._suppressed_ids < len(scores)]] = -np.inf
        return self._draw(_checked(scores))

    def _draw(self, scores: NDArray[np.float32]) -> int:
        config = self._config
        if config.greedy:
            return int(scores.argmax())
        kept = np.arange(len(scores))
        if config.top_k and config.top_k < len(scores):
            # All above the k-th largest; of equals at the edge the first ones stay.
            edge = np.partition(scores, -config.top_k)[-config.top_k]
            above, equal = np.flatnonzero(scores > edge), np.flatnonzero(scores == edge)
            kept = np.sort(np.concatenate([above, equal[: config.top_k - len(above)]]))
            scores = scores[kept]
        weights = np.exp((scores - scores.max()).astype(np.float64) / config.temperature)
        weights /= weights.sum()
        if config.top_p < 1.0:
            # Tokens this rare do not reach 1 - p together, so the set ends before them.
            likely = np.flatnonzero(weights >= (1.0 - config.top_p) / len(weights))
            order = likely[np.argsort(-weights[likely], kind="stable")]
            # A token stays if what stands before it has not reached p yet: never fewer than one.
            count = int(np.searchsorted(np.cumsum(weights[order]), config.top_p)) + 1
            order = order[:count]
            kept, weights = kept[order], weights[order]
        sums = np.cumsum(weights)
        drawn = int(np.searchsorted(sums, self._random.random() * sums[-1], side="right"))
        return int(kept[min(drawn, len(kept) - 1)])


def _checked(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    _check(scores.max())
    return scores


def _check(largest: np.float32) -> None:
    # One value that is no number makes the largest one no number either.
    if not largest > -np.inf or largest == np.inf:
        raise BackendError(
            f"language model: expected finite logits, the largest one is {float(largest)}. "
            "Run `visionllm-edge verify` on the bundle; in half precision an activation overflowed."
        )
