"""Names of keypoints: presets, how a name is written for the model, and what is joined by a line.

The model is asked for keypoints by name, so any names may be given. A preset is the list of a known
data set, in that data set's order. Knows no prompts, tensors or pictures.

Source: VisionLLM v2 (arXiv 2406.08394) and its keypoint data: COCO's 17 keypoints of a person,
AP-10K's 17 of an animal, and the 68 points of a face in the 300-W order.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from visionllm_edge.runtime.errors import InputError

__all__ = [
    "MAX_KEYPOINTS",
    "PRESETS",
    "KeypointPreset",
    "keypoint_names",
    "normalized_name",
    "skeleton",
]

MAX_KEYPOINTS = 68
"""The keypoint decoder has this many slots, as many as a face has points."""

Edge = tuple[str, str]


@dataclass(frozen=True)
class KeypointPreset:
    """The keypoints of a data set.

    Attributes:
        name: what a user calls it.
        of: the object that has them.
        keypoints: normalised names in the data set's order.
        edges: pairs of names that a drawing joins.
    """

    name: str
    of: str
    keypoints: tuple[str, ...]
    edges: tuple[Edge, ...]


def _both(*parts: str) -> list[str]:
    """``left`` and ``right`` of each part, in that order."""
    return [f"{side} {part}" for part in parts for side in ("left", "right")]


def _chains(*chains: Sequence[str]) -> tuple[Edge, ...]:
    return tuple(edge for chain in chains for edge in pairwise(chain))


def _numbered(part: str, numbers: Iterable[int]) -> list[str]:
    return [f"{part} {number}" for number in numbers]


def _sides(*parts: str) -> list[list[str]]:
    """The same chain on the left and on the right."""
    return [[f"{side} {part}" for part in parts] for side in ("left", "right")]


def _coco17() -> KeypointPreset:
    names = ["nose", *_both("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")]
    edges = _chains(
        *_sides("ankle", "knee", "hip", "shoulder", "elbow", "wrist"),
        *_sides("shoulder", "ear", "eye"),
        ["left hip", "right hip"],
        ["left shoulder", "right shoulder"],
        ["left eye", "nose", "right eye", "left eye"],
    )
    return KeypointPreset("coco17", "person", tuple(names), edges)


def _ap10k17() -> KeypointPreset:
    legs = [
        f"{side} {part}"
        for parts in (("shoulder", "elbow", "front paw"), ("hip", "knee", "back paw"))
        for side in ("left", "right")
        for part in parts
    ]
    names = ["left eye", "right eye", "nose", "neck", "root of tail", *legs]
    edges = _chains(
        ["left eye", "nose", "right eye", "left eye"],
        ["nose", "neck", "root of tail"],
        *(["neck", *leg] for leg in _sides("shoulder", "elbow", "front paw")),
        *(["root of tail", *leg] for leg in _sides("hip", "knee", "back paw")),
    )
    return KeypointPreset("ap10k17", "animal", tuple(names), edges)


def _face68() -> KeypointPreset:
    up, down = range(1, 6), range(5, 0, -1)
    jaw = [
        *_numbered("right cheekbone", (1, 2)),
        *_numbered("right cheek", up),
        "right chin",
        "chin center",
        "left chin",
        *_numbered("left cheek", down),
        *_numbered("left cheekbone", (2, 1)),
    ]
    brows = [_numbered(f"{side} eyebrow", up) for side in ("right", "left")]
    bridge = _numbered("nasal bridge", range(1, 5))
    wings = [
        *_numbered("right nasal wing", (1, 2)),
        "nasal wing center",
        *_numbered("left nasal wing", (1, 2)),
    ]
    eyes = [
        [
            f"{side} eye eye corner 1",
            *_numbered(f"{side} eye upper eyelid", (1, 2)),
            f"{side} eye eye corner 2",
            *_numbered(f"{side} eye lower eyelid", (2, 1)),
        ]
        for side in ("right", "left")
    ]
    outer = [
        "right mouth corner",
        *_numbered("upper lip outer edge", up),
        "left mouth corner",
        *_numbered("lower lip outer edge", down),
    ]
    inner = [
        *_numbered("upper lip inter edge", up),
        *_numbered("lower lip inter edge", range(3, 0, -1)),
    ]
    chains = [jaw, *brows, bridge, wings, *eyes, outer, inner]
    closed = [[*ring, ring[0]] for ring in (*eyes, outer, inner)]
    return KeypointPreset(
        "face68",
        "face",
        tuple(name for chain in chains for name in chain),
        _chains(jaw, *brows, bridge, wings, *closed),
    )


PRESETS: Mapping[str, KeypointPreset] = {
    preset.name: preset for preset in (_coco17(), _ap10k17(), _face68())
}
"""The presets by name."""


def normalized_name(name: str) -> str:
    """A name as the model knows it: ``Left_Eye`` becomes ``left eye``.

    Lower case; ``_``, ``-`` and ``/`` become blanks; other punctuation goes; single blanks between
    words.

    Source: VisionLLM v2 (arXiv 2406.08394), keypoint data.

    Raises:
        InputError: nothing is left, or it is no text.
    """
    if not isinstance(name, str):
        raise InputError(f"keypoint: expected a name, got {type(name).__name__}. Pass a string.")
    spaced = re.sub(r"[_\-/]", " ", name.lower())
    # Categories P* are punctuation, C* control characters, private use and lone surrogates.
    kept = (c for c in spaced if c.isspace() or unicodedata.category(c)[0] not in "PC")
    words = "".join(kept).split()
    if not words:
        raise InputError(
            f"keypoint {name!r}: expected a name such as 'left eye', got no letters. Remove it."
        )
    return " ".join(words)


def keypoint_names(
    keypoints: str | Sequence[str], *, limit: int = MAX_KEYPOINTS
) -> tuple[str, ...]:
    """The normalised names of a preset, or of a list of names.

    Args:
        keypoints: the name of a preset, or names.
        limit: how many the model takes.

    Raises:
        InputError: an unknown preset, no name, too many, or one twice.
    """
    if isinstance(keypoints, str):
        preset = PRESETS.get(keypoints.strip().lower())
        if preset is None:
            raise InputError(
                f"keypoints: expected a preset ({', '.join(PRESETS)}) or a list of names, got "
                f"{keypoints!r}. Name a preset, or pass names such as ['nose', 'left eye']."
            )
        names = preset.keypoints
    else:
        names = tuple(normalized_name(name) for name in keypoints)
    if not names:
        raise InputError(
            "keypoints: expected at least one name, got none. "
            f"Name some, or a preset ({', '.join(PRESETS)})."
        )
    if len(names) > limit:
        raise InputError(
            f"keypoints: expected at most {limit} (the keypoint decoder's limit), got "
            f"{len(names)}. Ask in several calls."
        )
    seen: dict[str, str] = {}
    for name, given in zip(names, names if isinstance(keypoints, str) else keypoints, strict=True):
        if name in seen:
            raise InputError(
                f"keypoint {given!r}: expected each name once, got it twice ({seen[name]!r} is "
                f"written '{name}' as well). Remove one."
            )
        seen[name] = given
    return names


def skeleton(names: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Which of these keypoints a drawing joins, as pairs of indices.

    The edges of the preset that shares most names, as far as both ends are there; of equals the
    first preset. Names that no preset has are joined to nothing.
    """
    place = {name: index for index, name in enumerate(names)}
    best = max(PRESETS.values(), key=lambda preset: len(place.keys() & set(preset.keypoints)))
    return tuple((place[a], place[b]) for a, b in best.edges if a in place and b in place)
