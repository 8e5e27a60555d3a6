"""The runtime: load a bundle and ask it. Needs no torch, no transformers and no exporter."""

from visionllm_edge.runtime.diffusion.image_maker import ImageOptions
from visionllm_edge.runtime.errors import (
    BackendError,
    BundleError,
    ContextError,
    EdgeError,
    InputError,
    MemoryLimitError,
    StoppedError,
)
from visionllm_edge.runtime.events import (
    DetectionEvent,
    DoneEvent,
    Event,
    GroupEvent,
    ImageEvent,
    PoseEvent,
    ProgressEvent,
    TokenEvent,
)
from visionllm_edge.runtime.language_model import LanguageModel
from visionllm_edge.runtime.llm.sampling import GenerationConfig
from visionllm_edge.runtime.model import VisionLLM
from visionllm_edge.runtime.pipelines.chat import ChatSession
from visionllm_edge.runtime.pipelines.pose import PoseSelecting
from visionllm_edge.runtime.pipelines.text import TextChat
from visionllm_edge.runtime.regions import Box, Mask, Point, Polygon, Region, Scribble
from visionllm_edge.runtime.results import (
    ChatResult,
    Detection,
    DetectionResult,
    GroundedCaptionResult,
    GroundedPhrase,
    ImageResult,
    Keypoint,
    Pose,
    PoseResult,
    SemanticResult,
    Span,
    TextResult,
)

__all__ = [
    "BackendError",
    "Box",
    "BundleError",
    "ChatResult",
    "ChatSession",
    "ContextError",
    "Detection",
    "DetectionEvent",
    "DetectionResult",
    "DoneEvent",
    "EdgeError",
    "Event",
    "GenerationConfig",
    "GroundedCaptionResult",
    "GroundedPhrase",
    "GroupEvent",
    "ImageEvent",
    "ImageOptions",
    "ImageResult",
    "InputError",
    "Keypoint",
    "LanguageModel",
    "Mask",
    "MemoryLimitError",
    "Point",
    "Polygon",
    "Pose",
    "PoseEvent",
    "PoseResult",
    "PoseSelecting",
    "ProgressEvent",
    "Region",
    "Scribble",
    "SemanticResult",
    "Span",
    "StoppedError",
    "TextChat",
    "TextResult",
    "TokenEvent",
    "VisionLLM",
]
