"""What every conversation is: turns that enter the history when their answer is complete."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Generic, TypeVar

from visionllm_edge.runtime.events import DoneEvent, Event
from visionllm_edge.runtime.llm.sampling import GenerationConfig
from visionllm_edge.runtime.llm.sequence import TokenSequence
from visionllm_edge.runtime.results import ChatResult, TextResult

__all__ = ["Conversation"]

Answered = TypeVar("Answered", ChatResult, TextResult)


class Conversation(ABC, Generic[Answered]):
    """Questions and answers, kept as the ids that the model saw: a turn costs its new words only.

    Other calls on the same model, and other conversations, may come in between at any time.
    """

    def __init__(self, config: GenerationConfig) -> None:
        """Start without history; nothing is computed yet."""
        self._config = config
        self._sequence: TokenSequence | None = None
        self._turns: list[tuple[str, Answered]] = []

    @property
    def turns(self) -> tuple[tuple[str, Answered], ...]:
        """Questions and answers so far."""
        return tuple(self._turns)

    @property
    def context_used(self) -> int:
        """Positions that the history takes, out of the session's capacity."""
        return len(self._sequence) if self._sequence is not None else 0

    def reset(self) -> None:
        """Forget the history; what is talked about stays."""
        self._sequence = None
        self._turns.clear()

    def send(self, text: str, *, config: GenerationConfig | None = None) -> Answered:
        """Ask and wait for the whole answer.

        Raises:
            ContextError: history and question do not fit; the history stays as it was.
            InputError: no question.
        """
        before = len(self._turns)
        for _ in self.stream(text, config=config):
            pass
        assert len(self._turns) == before + 1, "a stream that ends has entered its turn"
        return self._turns[-1][1]

    @abstractmethod
    def stream(self, text: str, *, config: GenerationConfig | None = None) -> Iterator[Event]:
        """Ask, and get the answer as it is made.

        The turn enters the history with the ``DoneEvent``; a stream that is given up before leaves
        the history as it was.

        Raises:
            ContextError: history and question do not fit; raised here, not by the iterator.
            InputError: no question.
        """

    def _enter(self, question: str, sequence: TokenSequence, result: Answered) -> DoneEvent:
        """Put a complete turn into the history; returns the event that says so."""
        self._sequence = sequence
        self._turns.append((question, result))
        return DoneEvent(result)
