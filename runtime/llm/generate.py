"""Free generation over a session: one token at a time, a routing token as a step of 1+N rows.

The next token after a routing token comes from the last super-link row, because that is the last
position of the step. Knows tokens, text pieces and hidden states; not what a group means.

Tokens may be guessed ahead (``lookup``) or be settled by the answer's format. Neither changes which
tokens come out: every guess is compared with what the sampler picks from the logits of its place,
and of settled tokens there is nothing to pick.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.llm.answer_format import AnswerFormat, Walk
from visionllm_edge.runtime.llm.lookup import guess
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
        runs: how often the decoder ran.
    """

    def __init__(
        self,
        session: DecoderSession,
        sequence: TokenSequence,
        tokenizer: Tokenizer,
        config: GenerationConfig,
        *,
        suppressed: frozenset[int] = frozenset(),
        form: AnswerFormat | None = None,
        ends: frozenset[int] | None = None,
        continues: bool = False,
        group_limits: Mapping[frozenset[int], int] | None = None,
    ) -> None:
        """Check that the prompt and one more token fit, or the longest answer of a format.

        Args:
            session: the decoder.
            sequence: the prompt.
            tokenizer: of the model.
            config: generation options.
            suppressed: ids that are never picked.
            form: the only answers that are allowed; None allows any.
            ends: ids that end an answer; None for the tokenizer's end token.
            continues: the answer goes on with the prompt's text, in which a blank counts.
            group_limits: how many groups the answer may have of each set of routing ids.

        Raises:
            ContextError: they do not.
            InputError: the format allows longer answers than the options do.
        """
        if form is not None:
            _require_room(form, config, sequence)
        session.require(len(sequence) + (sequence.cost(form.longest) - 1 if form else 1))
        self.finish_reason = ""
        self.tail = ""
        self.runs = 0
        self._session = session
        self._sequence = sequence
        self._tokenizer = tokenizer
        self._config = config
        # As many ids as a character may be spelled over.
        self._context = tuple(sequence.ids[-8:]) if continues else ()
        self._ends = ends or frozenset({tokenizer.eos})
        self._sampler = Sampler(config, suppressed=suppressed, size=tokenizer.size)
        self._walk = Walk(form) if form is not None else None
        self._limits = dict(group_limits or {})
        # Logits that are computed already: of the next token and of the guesses behind it.
        self._rows: list[NDArray[np.float32]] = []
        self._guesses: list[int] = []

    def __iter__(self) -> Iterator[Step]:
        """Generate until the end token or a limit."""
        session, sequence, config = self._session, self._sequence, self._config
        stream = self._tokenizer.stream(after=self._context)
        groups = 0
        reason = "length"
        for made in range(config.max_new_tokens):
            token = self._next(made)
            if token in self._ends:
                reason = "stop"
                break
            opens_group = sequence.opens_group(token)
            cost = sequence.cost([token]) if opens_group else 1
            if len(sequence) + cost > session.capacity or groups + opens_group > config.max_groups:
                break
            if opens_group and not self._take_group(token):
                break
            opened = sequence.append([token])
            text = stream.push(token)
            if not opened:
                yield Step(token, text)
                continue
            groups += 1
            first = opened[0].position + 1
            output = session.run(sequence, hidden=range(first, first + opened[0].rows))
            self.runs += 1
            # A copy: the session may be used before we come back.
            self._rows = [output.logits_V.copy()]
            yield Step(token, text, opened[0], output.hidden_rD)
        self.tail = stream.flush()
        self.finish_reason = reason

    def _take_group(self, token: int) -> bool:
        """Count a group; False if its kind has as many as it may have."""
        for ids, left in self._limits.items():
            if token in ids:
                self._limits[ids] = left - 1
                return left > 0
        return True

    def _next(self, made: int) -> int:
        """Pick the next token; the decoder runs unless its answer is known already."""
        allowed = self._walk.allowed() if self._walk is not None else None
        if allowed is not None and len(allowed) == 1:
            token = allowed[0]
            # Rows that were computed for a guess stay of use only if the guess was right.
            self._settle(token)
        else:
            if not self._rows:
                self._run(made)
            token = self._sampler.pick(
                self._rows[0],
                forbidden=self._ends if made < self._config.min_new_tokens else (),
                allowed=allowed,
            )
            self._settle(token)
        if self._walk is not None:
            self._walk.advance(token)
        return token

    def _settle(self, token: int) -> None:
        """Keep the logits behind a guess if the token is that guess, else none."""
        if self._guesses and self._guesses[0] == token and self._rows:
            del self._rows[0], self._guesses[0]
        else:
            self._rows, self._guesses = [], []

    def _run(self, made: int) -> None:
        session, sequence = self._session, self._sequence
        self._guesses = self._guess(made)
        self.runs += 1
        if not self._guesses:
            self._rows = [session.run(sequence).logits_V]
            return
        first = len(sequence) - 1
        sequence.append(self._guesses)
        try:
            output = session.run(sequence, logits_from=first)
        finally:
            sequence.drop_plain(len(self._guesses))
        self._rows = list(output.logits_lV.copy())

    def _guess(self, made: int) -> list[int]:
        """Tokens that may follow, as many as still fit."""
        sequence, config = self._sequence, self._config
        # The token that is picked behind the last guess needs no room in the context.
        room = min(
            config.lookup_tokens,
            config.max_new_tokens - made - 1,
            self._session.capacity - len(sequence) - 1,
        )
        if room < 1:
            return []
        names = self._tokenizer.control_name
        return guess(sequence.ids, room, stop=lambda token: names(token) is not None)


def _require_room(form: AnswerFormat, config: GenerationConfig, sequence: TokenSequence) -> None:
    """Refuse options that could cut an answer off in the middle of its format."""
    longest = form.longest
    limits = (
        ("max_new_tokens", len(longest), config.max_new_tokens, "tokens"),
        ("max_groups", sum(map(sequence.opens_group, longest)), config.max_groups, "groups"),
    )
    for name, needed, given, what in limits:
        if needed > given:
            raise InputError(
                f"generation option {name}: the longest allowed answer has {needed} {what}, the "
                f"option says {given}, which could cut it off. Raise it or shorten the answers."
            )
