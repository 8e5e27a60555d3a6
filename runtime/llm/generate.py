"""Free generation over a session: one token at a time, a routing token as a step of 1+N rows.

The next token after a routing token comes from the last super-link row, because that is the last
position of the step. Knows tokens, text pieces and hidden states; not what a group means.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.runtime.llm.sampling import GenerationConfig, Sampler
from visionllm_edge.runtime.llm.sequence import Group, TokenSequence
from visionllm_edge.runtime.llm.session import DecoderSession
from visionllm_edge.runtime.tokenizer import Tokenizer

__all__ = ["Generation", "Step"]


@dataclass(frozen=True)
class Step:
    """One generated token.

    Attributes:
        token: its id.
        text: what became certain of the text; often empty, see ``TextStream``.
        group: the group that a routing token opened, else None.
        hidden_ND: post-norm hidden states of the group's rows ``[N, D]``, else None.
    """

    token: int
    text: str
    group: Group | None = None
    hidden_ND: NDArray[np.float32] | None = None  # noqa: N815 (axis letters)


class Generation:
    """An answer in the making: iterate once for its steps.

    ``sequence`` grows with the answer; the end token is not appended. Whatever else uses the
    session between two steps costs time and changes nothing: the cache is brought back.

    Attributes:
        finish_reason: ``stop`` (end token) or ``length`` (token, group or context limit); empty
            while it runs.
        tail: text still held back at the end, for example an unfinished character.
    """

    def __init__(
        self,
        session: DecoderSession,
        sequence: TokenSequence,
        tokenizer: Tokenizer,
        config: GenerationConfig,
        *,
        suppressed: frozenset[int] = frozenset(),
    ) -> None:
        """Check that the prompt and one more token fit.

        Raises:
            ContextError: they do not.
        """
        session.require(len(sequence) + 1)
        self.finish_reason = ""
        self.tail = ""
        self._session = session
        self._sequence = sequence
        self._tokenizer = tokenizer
        self._config = config
        self._sampler = Sampler(config, suppressed=suppressed, size=tokenizer.size)

    def __iter__(self) -> Iterator[Step]:
        """Generate until the end token or a limit."""
        session, sequence, config = self._session, self._sequence, self._config
        stream = self._tokenizer.stream()
        logits: NDArray[np.float32] | None = None
        groups = 0
        reason = "length"
        for made in range(config.max_new_tokens):
            if logits is None:
                logits = session.run(sequence).logits_V
            early = self._tokenizer.eos if made < config.min_new_tokens else None
            token = self._sampler.pick(logits, forbidden=early)
            logits = None
            if token == self._tokenizer.eos:
                reason = "stop"
                break
            cost = sequence.cost([token])
            opens_group = cost > 1
            if len(sequence) + cost > session.capacity or groups + opens_group > config.max_groups:
                break
            opened = sequence.append([token])
            text = stream.push(token)
            if not opened:
                yield Step(token, text)
                continue
            groups += 1
            output = session.run(sequence, hidden_from=opened[0].position + 1)
            logits = output.logits_V.copy()  # the session may be used before we come back
            yield Step(token, text, opened[0], output.hidden_sD)
        self.tail = stream.flush()
        self.finish_reason = reason
