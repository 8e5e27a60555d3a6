"""The shapes world: small made-up pictures whose contents are known exactly.

A scene holds one to a few coloured items (circle, square, triangle, star, diamond, person) on a
textured background, with exact boxes, masks and keypoints, and with the sentences, questions and
class names that belong to it. The tiny checkpoint is trained on it and every evaluation of this
package uses it: fresh scenes from a seed are held-out data.

Everything is a function of the ``numpy.random.Generator`` that is passed in. The module needs numpy
and Pillow only and knows nothing about models.
"""

from visionllm_edge.runtime.shapes_world.language import (
    Question,
    caption,
    class_names,
    expressions,
    indefinite,
    matches,
    plural,
    questions,
)
from visionllm_edge.runtime.shapes_world.names import COLOR_RGB, COLORS, SHAPES
from visionllm_edge.runtime.shapes_world.scene import Item, Scene, make_scene

__all__ = [
    "COLORS",
    "COLOR_RGB",
    "SHAPES",
    "Item",
    "Question",
    "Scene",
    "caption",
    "class_names",
    "expressions",
    "indefinite",
    "make_scene",
    "matches",
    "plural",
    "questions",
]
