"""Key/value caches over the ``llm_decoder`` stage, reused by whatever is asked next.

The session remembers what stands in its caches. Given a sequence it computes only what is not there
yet: a second question on a picture starts behind the picture, the next token behind the last one.
With several caches, conversations that take turns each find theirs again.

Stage ports (KV heads, C capacity, Dh head size; a cache is a fixed buffer that the backend updates
in place, rows at and behind ``past_length`` are not read):

| port | shape | type |
|---|---|---|
| inputs_embeds | [1,s,D] | float32 |
| past_length | [1] | int64 |
| hidden_rows, rows of this run that go through the end of the model | [r] | int64 |
| logit_rows, which of these rows go through the head | [l] | int64 |
| past_key_values.{i}.key / .value | [1,KV,C,Dh] | float32, float16 or int8 |
| logits | [l,V] | float32 |
| hidden, after the final norm | [1,r,D] | float32 |
| present.{i}.key / .value | [1,KV,C,Dh] | as the inputs |

Not safe for several threads; several conversations may take turns at any point between two calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.runtime.backends.base import KVCache, StageRunner
from visionllm_edge.runtime.errors import ContextError
from visionllm_edge.runtime.llm.embeddings import EmbeddingTable
from visionllm_edge.runtime.llm.sequence import TokenSequence

__all__ = ["PROMPT_ROWS", "DecoderSession", "StepOutput"]

# A prompt of 512 at TinyLlama's shape (int4, one thread) takes 3.4 s of processor time in two runs
# of 256 and 3.6 s in one, because activations then stay in the processor's cache.
PROMPT_ROWS = 256
_FIRST_ROW = np.zeros(1, dtype=np.int64)


@dataclass(frozen=True)
class StepOutput:
    """What one run of the decoder gives.

    Attributes:
        logits_lV: float32, of the last position, or of every position from ``logits_from`` on;
            valid until the next run.
        hidden_rD: post-norm hidden states of the positions asked for, a copy; None if none were.
        computed: positions that were computed, as opposed to found in a cache.
    """

    logits_lV: NDArray[np.float32]  # noqa: N815 (axis letters)
    hidden_rD: NDArray[np.float32] | None  # noqa: N815
    computed: int

    @property
    def logits_V(self) -> NDArray[np.float32]:  # noqa: N802 (axis letters)
        """Logits of the last position; valid until the next run."""
        last: NDArray[np.float32] = self.logits_lV[-1]
        return last


@dataclass(frozen=True)
class _StepArrays:
    """Logits, valid until the next run, and a copy of the hidden states of one run."""

    logits: NDArray[np.float32]
    hidden: NDArray[np.float32]


@dataclass
class _Slot:
    """One cache and what is in it."""

    cache: KVCache
    keys: list[int] = field(default_factory=list)
    image_key: str | None = None

    def shared_prefix(self, sequence: TokenSequence) -> int:
        mine, theirs = self.keys, sequence.keys
        limit = min(len(mine), len(theirs))
        if mine[:limit] == theirs[:limit]:
            shared = limit
        else:
            shared = next(i for i in range(limit) if mine[i] != theirs[i])
        image_key = _image_key(sequence)
        if image_key != self.image_key:
            start = sequence.image_start()
            if start is not None:
                shared = min(shared, start)
        return shared


class DecoderSession:
    """The caches and what is in them.

    Args:
        stage: the loaded decoder.
        table: the token embeddings.
        capacity: C, the context in positions.
        caches: how many conversations to remember at a time. The second cache is made when a
            second conversation comes that would otherwise overwrite the first.
        rows: positions of one run at most; a longer prompt takes several, which bounds the memory
            that a run works in.
    """

    def __init__(
        self,
        stage: StageRunner,
        table: EmbeddingTable,
        *,
        capacity: int,
        caches: int = 1,
        rows: int = PROMPT_ROWS,
    ) -> None:
        """Allocate the first cache.

        Raises:
            BackendError: the stage has no cache, or one of another capacity.
        """
        assert caches >= 1, "a session needs a cache"
        self.capacity = capacity
        self._stage = stage
        self._table = table
        self._most = caches
        self._rows = rows
        # The one that was used last stands at the end.
        self._slots = [_Slot(stage.new_cache(capacity))]

    @property
    def length(self) -> int:
        """Positions in the cache that was used last."""
        return len(self._slots[-1].keys)

    @property
    def cache_bytes(self) -> int:
        """Memory of all caches that exist."""
        return sum(slot.cache.nbytes for slot in self._slots)

    def rewind(self, length: int) -> None:
        """Forget every position from ``length`` on in the cache that was used last.

        Raises:
            ValueError: longer than what is there.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"rewind: expected 0..{self.length}, got {length}")
        del self._slots[-1].keys[length:]

    def clear(self) -> None:
        """Forget everything in every cache; their memory stays."""
        for slot in self._slots:
            slot.keys.clear()

    def shared_prefix(self, sequence: TokenSequence) -> int:
        """How many positions of a sequence some cache holds already."""
        return max(slot.shared_prefix(sequence) for slot in self._slots)

    def require(self, positions: int) -> None:
        """Refuse a prompt that does not fit, before any work is done.

        Raises:
            ContextError: with the numbers.
        """
        if positions > self.capacity:
            raise ContextError(
                f"prompt: expected at most {self.capacity} positions (the context that was loaded)"
                f", got {positions}. Shorten the text or the class list, or start a new "
                "conversation."
            )

    def run(
        self,
        sequence: TokenSequence,
        *,
        hidden: Sequence[int] = (),
        logits_from: int | None = None,
    ) -> StepOutput:
        """Bring the whole sequence into a cache.

        Args:
            sequence: what the context shall be; at least one position.
            hidden: positions whose hidden states are wanted, ascending. What a cache holds from
                the first of them on is computed again.
            logits_from: give the logits of every position from here on, not of the last one only.

        Raises:
            ContextError: the sequence does not fit.
        """
        total = len(sequence)
        assert total > 0, "an empty sequence has no next token"
        self.require(total)
        # The last position always runs: its logits are not kept.
        first_logits = total - 1 if logits_from is None else logits_from
        slot, shared = self._choose(sequence)
        start = min(shared, first_logits, *hidden[:1])
        # Until a run has succeeded, only what stands before it can be trusted.
        del slot.keys[start:]
        slot.image_key = _image_key(sequence)
        logits: list[NDArray[np.float32]] = []
        states: list[NDArray[np.float32]] = []
        # Equal parts, so that the last one is not a few rows for which all weights are read.
        parts = -(-(total - start) // self._rows)
        for part in range(parts):
            first = start + (total - start) * part // parts
            last = start + (total - start) * (part + 1) // parts
            wanted = [position for position in hidden if first <= position < last]
            with_logits = range(max(first, first_logits), last)
            outputs = self._step(slot, sequence, first, last, wanted, with_logits)
            if wanted:
                states.append(outputs.hidden)
            if len(with_logits):
                # The next part's run would overwrite what it does not own.
                logits.append(outputs.logits if part == parts - 1 else outputs.logits.copy())
        return StepOutput(
            logits_lV=logits[0] if len(logits) == 1 else np.concatenate(logits),
            hidden_rD=np.concatenate(states) if states else None,
            computed=total - start,
        )

    def _step(
        self,
        slot: _Slot,
        sequence: TokenSequence,
        first: int,
        last: int,
        hidden: Sequence[int],
        with_logits: range,
    ) -> _StepArrays:
        """Run the positions from ``first`` to ``last``."""
        # A run gives one row at least; one that nobody wants costs little.
        at_end = with_logits or range(last - 1, last)
        if hidden:
            rows = np.array(sorted({*hidden, *at_end}), dtype=np.int64)
        else:
            rows = np.arange(at_end.start, at_end.stop, dtype=np.int64)
        embeddings = sequence.embeddings(first, self._table, end=last)
        outputs = self._stage.run_with_cache(
            {
                "inputs_embeds": embeddings[None],
                "past_length": np.array([first], np.int64),
                "hidden_rows": rows - first,
                # The positions with logits are the last ones, so they are the last rows.
                "logit_rows": _FIRST_ROW
                if len(rows) == 1
                else np.arange(len(rows) - len(at_end), len(rows), dtype=np.int64),
            },
            slot.cache,
        )
        slot.keys += sequence.keys[first:last]
        wanted = np.searchsorted(rows, np.asarray(hidden, dtype=np.int64))
        return _StepArrays(
            logits=outputs["logits"].astype(np.float32, copy=False),
            hidden=outputs["hidden"][0, wanted].astype(np.float32, copy=False),
        )

    def _choose(self, sequence: TokenSequence) -> tuple[_Slot, int]:
        """The cache to use, moved to the end of the list, and what of the sequence it holds.

        The one that costs least: positions to compute now, and positions of another conversation
        that are overwritten and would be computed again when it goes on.
        """
        if len(self._slots) == 1 and self._most == 1:
            return self._slots[0], self._slots[0].shared_prefix(sequence)
        shared = [slot.shared_prefix(sequence) for slot in self._slots]
        costs = [
            len(sequence) - found + len(slot.keys) - found
            for slot, found in zip(self._slots, shared, strict=True)
        ]
        best = costs.index(min(costs))  # of equals the one that was not used for longest
        if len(self._slots) < self._most and costs[best] > len(sequence):
            self._slots.append(_Slot(self._stage.new_cache(self.capacity)))
            return self._slots[-1], 0
        self._slots.append(self._slots.pop(best))
        return self._slots[-1], shared[best]


def _image_key(sequence: TokenSequence) -> str | None:
    return sequence.image.key if sequence.image is not None else None
