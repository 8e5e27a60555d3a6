"""The language model of a bundle, driven token by token through the runtime's own session.

What is timed is what an answer costs: the embedding rows, the session's bookkeeping, the decoder
and the choice of the token. Tokenizer and vision are left out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.llm.sequence import TokenSequence
from visionllm_edge.runtime.llm.session import DecoderSession
from visionllm_edge.runtime.manifest import LLAMA
from visionllm_edge.runtime.memory import plan_memory
from visionllm_edge.runtime.pipelines.loading import (
    LoadOptions,
    load_pipeline,
    load_text_pipeline,
)

__all__ = ["LlmEngine", "LlmSizes", "open_llm"]

# No key of a context: there are no pictures here.
_NO_IMAGE = -(1 << 62)


@dataclass(frozen=True)
class LlmSizes:
    """What a decoder holds in memory.

    Attributes:
        weight_bytes: of all its weights, each of which a token reads once.
        cache_bytes: keys and values of the whole context.
        position_bytes: keys and values of one position; a token reads those of every position
            before it.
        vocabulary: number of tokens.
    """

    weight_bytes: int
    cache_bytes: int
    position_bytes: int
    vocabulary: int

    def bytes_read(self, context: int) -> int:
        """What the next token must read from memory behind ``context`` positions."""
        return self.weight_bytes + self.position_bytes * context


class LlmEngine:
    """A loaded decoder; see ``peers.measure.Engine`` and ``language_quality.LanguageModel``."""

    def __init__(self, session: DecoderSession, sizes: LlmSizes, load_s: float) -> None:
        """Take a session."""
        self.sizes = sizes
        self.load_s = load_s
        self._session = session
        self._sequence = _empty_sequence()

    def prefill(self, tokens: Sequence[int]) -> int:
        """Forget the context, take these tokens, return the most likely next one."""
        self._session.clear()
        self._sequence = _empty_sequence()
        self._sequence.append(tokens)
        return self._next()

    def decode(self, token: int) -> int:
        """Append one token, return the most likely next one."""
        self._sequence.append((token,))
        return self._next()

    def logits(self, tokens: Sequence[int], rows: int) -> Iterator[NDArray[np.float32]]:
        """Logits behind every position of a new context, at most ``rows`` at a time.

        What comes out is overwritten by the next part.
        """
        self._session.clear()
        self._sequence = _empty_sequence()
        for start in range(0, len(tokens), rows):
            self._sequence.append(tokens[start : start + rows])
            yield self._session.run(self._sequence, logits_from=start).logits_lV

    def answer(self, prompt: Sequence[int], count: int, stop: frozenset[int]) -> list[int]:
        """Greedy continuation: at most ``count`` ids, up to the first in ``stop``, without it."""
        out: list[int] = []
        token = self.prefill(prompt)
        while token not in stop:
            out.append(token)
            if len(out) == count:
                break
            token = self.decode(token)
        return out

    def _next(self) -> int:
        return int(self._session.run(self._sequence).logits_V.argmax())


def open_llm(path: Path, *, threads: int | None, positions: int | None = None) -> LlmEngine:
    """Load the language model of a bundle, and nothing else of it.

    Args:
        path: a bundle of any family; its files are not hashed.
        threads: None leaves it to the backend.
        positions: the context that is needed; None takes what the model has.

    Raises:
        BundleError, BackendError, MemoryLimitError: it cannot be loaded.
        InputError: the model's context is shorter than ``positions``.
    """
    begin = time.perf_counter()
    bundle = Bundle.open(path, verify=False)
    options = LoadOptions(threads=threads, context=positions, buckets=1)
    if bundle.manifest.family == LLAMA:
        session = load_text_pipeline(bundle, options).session
    else:
        session = load_pipeline(bundle, options).session
    plan = plan_memory(bundle, context=session.capacity, buckets=1)
    sizes = LlmSizes(
        weight_bytes=plan.decoder,
        cache_bytes=plan.cache,
        position_bytes=plan.cache // session.capacity,
        vocabulary=bundle.manifest.model.llm.vocab_size,
    )
    return LlmEngine(session, sizes, time.perf_counter() - begin)


def _empty_sequence() -> TokenSequence:
    return TokenSequence(links={}, names={}, im_patch=_NO_IMAGE)
