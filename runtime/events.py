"""What a streamed answer is made of, in the order in which it happens.

A stream gives :class:`TokenEvent` for each piece of text, :class:`GroupEvent` when a routing token
was answered, :class:`DetectionEvent` for each object found, and ends with one :class:`DoneEvent`.
"""

from __future__ import annotations

from dataclasses import dataclass

from visionllm_edge.runtime.results import Detection, Result

__all__ = ["DetectionEvent", "DoneEvent", "Event", "GroupEvent", "TokenEvent"]


@dataclass(frozen=True)
class TokenEvent:
    """One generated token. ``text`` is what it adds to the answer and may be empty."""

    text: str
    token_id: int

    def to_dict(self) -> dict[str, object]:
        """Plain JSON types."""
        return {"event": "token", "text": self.text, "token_id": int(self.token_id)}


@dataclass(frozen=True)
class GroupEvent:
    """A routing token with the words that it stands for; ``index`` counts groups of the answer."""

    routing: str
    label: str
    index: int

    def to_dict(self) -> dict[str, object]:
        """Plain JSON types."""
        return {
            "event": "group",
            "routing": self.routing,
            "label": self.label,
            "index": int(self.index),
        }


@dataclass(frozen=True)
class DetectionEvent:
    """One object found for a group."""

    detection: Detection

    def to_dict(self) -> dict[str, object]:
        """Plain JSON types."""
        return {"event": "detection", "detection": self.detection.to_dict()}


@dataclass(frozen=True)
class DoneEvent:
    """The whole result; always the last event."""

    result: Result

    def to_dict(self) -> dict[str, object]:
        """Plain JSON types."""
        return {"event": "done", "result": self.result.to_dict()}


Event = TokenEvent | GroupEvent | DetectionEvent | DoneEvent
