"""What a streamed answer is made of, in the order in which it happens.

A stream gives :class:`TokenEvent` for each piece of text, :class:`GroupEvent` when a routing token
was answered, :class:`DetectionEvent`, :class:`PoseEvent` and :class:`ImageEvent` for what was found
or made, :class:`ProgressEvent` where one thing takes many steps, and ends with one
:class:`DoneEvent`.
"""

from __future__ import annotations

from dataclasses import dataclass

from visionllm_edge.runtime.results import Detection, ImageResult, Pose, Result

__all__ = [
    "DetectionEvent",
    "DoneEvent",
    "Event",
    "GroupEvent",
    "ImageEvent",
    "PoseEvent",
    "ProgressEvent",
    "TokenEvent",
]


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
class PoseEvent:
    """One instance found with its keypoints."""

    pose: Pose

    def to_dict(self) -> dict[str, object]:
        """Plain JSON types."""
        return {"event": "pose", "pose": self.pose.to_dict()}


@dataclass(frozen=True)
class ImageEvent:
    """One picture made."""

    image: ImageResult

    def to_dict(self) -> dict[str, object]:
        """Plain JSON types."""
        return {"event": "image", "image": self.image.to_dict()}


@dataclass(frozen=True)
class ProgressEvent:
    """``step`` of ``total`` steps of something are done."""

    what: str
    step: int
    total: int

    def to_dict(self) -> dict[str, object]:
        """Plain JSON types."""
        return {"event": "progress", "what": self.what, "step": self.step, "total": self.total}


@dataclass(frozen=True)
class DoneEvent:
    """The whole result; always the last event."""

    result: Result

    def to_dict(self) -> dict[str, object]:
        """Plain JSON types."""
        return {"event": "done", "result": self.result.to_dict()}


Event = (
    TokenEvent | GroupEvent | DetectionEvent | PoseEvent | ImageEvent | ProgressEvent | DoneEvent
)
