"""What a task answers: typed results, their JSON form, their COCO form, their picture.

Boxes are in pixels of the original image, x to the right and y down. Sizes are (height, width).
A result knows nothing of models, bundles or backends.
"""

from visionllm_edge.runtime.results.chat import ChatResult, Span
from visionllm_edge.runtime.results.detection import Detection, DetectionResult
from visionllm_edge.runtime.results.grounding import (
    GroundedCaptionResult,
    GroundedPhrase,
    SemanticResult,
)
from visionllm_edge.runtime.results.image import ImageResult
from visionllm_edge.runtime.results.pose import Keypoint, Pose, PoseResult
from visionllm_edge.runtime.results.text import TextResult

__all__ = [
    "ChatResult",
    "Detection",
    "DetectionResult",
    "GroundedCaptionResult",
    "GroundedPhrase",
    "ImageResult",
    "Keypoint",
    "Pose",
    "PoseResult",
    "Result",
    "SemanticResult",
    "Span",
    "TextResult",
]

Result = (
    DetectionResult
    | TextResult
    | ChatResult
    | PoseResult
    | GroundedCaptionResult
    | SemanticResult
    | ImageResult
)
