"""One key/value cache over the ``llm_decoder`` stage, reused by whatever is asked next.

The session remembers what stands in its cache. Given a sequence it computes only what is not there
yet: a second question on a picture starts behind the picture, the next token behind the last one.

Stage ports (KV heads, C capacity, Dh head size; the cache is a fixed buffer that the backend
updates in place, rows at and behind ``past_length`` are not read):

| port | shape | type |
|---|---|---|
| inputs_embeds | [1,s,D] | float32 |
| past_length | [1] | int64 |
| past_key_values.{i}.key / .value | [1,KV,C,Dh] | float32 |
| logits, of the last row | [1,V] | float32 |
| hidden, after the final norm | [1,s,D] | float32 |
| present.{i}.key / .value | [1,KV,C,Dh] | float32 |

Not safe for several threads; several conversations may take turns at any point between two calls.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.runtime.backends.base import StageRunner
from visionllm_edge.runtime.errors import ContextError
from visionllm_edge.runtime.llm.embeddings import EmbeddingTable
from visionllm_edge.runtime.llm.sequence import TokenSequence

__all__ = ["DecoderSession", "StepOutput"]


@dataclass(frozen=True)
class StepOutput:
    """What one run of the decoder gives.

    Attributes:
        logits_V: of the last position, float32; valid until the next run.
        hidden_sD: post-norm hidden states of the positions asked for, a copy; None if none were.
        computed: positions that were computed, as opposed to found in the cache.
    """

    logits_V: NDArray[np.float32]  # noqa: N815 (axis letters)
    hidden_sD: NDArray[np.float32] | None  # noqa: N815
    computed: int


class DecoderSession:
    """The cache and what is in it.

    Args:
        stage: the loaded decoder.
        table: the token embeddings.
        capacity: C, the context in positions.
    """

    def __init__(self, stage: StageRunner, table: EmbeddingTable, *, capacity: int) -> None:
        """Allocate the cache.

        Raises:
            BackendError: the stage has no cache, or one of another capacity.
        """
        self.capacity = capacity
        self._stage = stage
        self._table = table
        self._cache = stage.new_cache(capacity)
        self._keys: list[int] = []
        self._image_key: str | None = None

    @property
    def length(self) -> int:
        """Positions in the cache."""
        return len(self._keys)

    def rewind(self, length: int) -> None:
        """Forget every position from ``length`` on.

        Raises:
            ValueError: longer than what is there.
        """
        if not 0 <= length <= len(self._keys):
            raise ValueError(f"rewind: expected 0..{len(self._keys)}, got {length}")
        del self._keys[length:]

    def shared_prefix(self, sequence: TokenSequence) -> int:
        """How many positions of a sequence the cache holds already."""
        mine, theirs = self._keys, sequence.keys
        limit = min(len(mine), len(theirs))
        if mine[:limit] == theirs[:limit]:
            shared = limit
        else:
            shared = next(i for i in range(limit) if mine[i] != theirs[i])
        image_key = sequence.image.key if sequence.image is not None else None
        start = sequence.image_start()
        if start is not None and image_key != self._image_key:
            shared = min(shared, start)
        return shared

    def require(self, positions: int) -> None:
        """Refuse a prompt that does not fit, before any work is done.

        Raises:
            ContextError: with the numbers.
        """
        if positions > self.capacity:
            raise ContextError(
                f"prompt: expected at most {self.capacity} positions (the context of this bundle), "
                f"got {positions}. Shorten the text or the class list, or start a new conversation."
            )

    def run(self, sequence: TokenSequence, *, hidden_from: int | None = None) -> StepOutput:
        """Bring the whole sequence into the cache.

        Args:
            sequence: what the context shall be; at least one position.
            hidden_from: return the hidden states from this position on. They are computed again
                if the cache holds these positions.

        Raises:
            ContextError: the sequence does not fit.
        """
        total = len(sequence)
        assert total > 0, "an empty sequence has no next token"
        self.require(total)
        # The last position always runs: its logits are not kept.
        start = min(self.shared_prefix(sequence), total - 1)
        if hidden_from is not None:
            start = min(start, hidden_from)
        embeddings = sequence.embeddings(start, self._table)
        # Until the run has succeeded, only what stands before it can be trusted.
        self.rewind(min(start, len(self._keys)))
        outputs = self._stage.run_with_cache(
            {"inputs_embeds": embeddings[None], "past_length": np.array([start], np.int64)},
            self._cache,
        )
        self._keys = list(sequence.keys)
        self._image_key = sequence.image.key if sequence.image is not None else None
        hidden = None
        if hidden_from is not None:
            hidden = np.array(outputs["hidden"][0, hidden_from - start :], dtype=np.float32)
        return StepOutput(
            logits_V=outputs["logits"][0].astype(np.float32, copy=False),
            hidden_sD=hidden,
            computed=total - start,
        )
