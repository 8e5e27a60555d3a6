"""The runtime: load a bundle and ask it. Needs no torch, no transformers and no exporter."""

from visionllm_edge.runtime.errors import (
    BackendError,
    BundleError,
    ContextError,
    EdgeError,
    InputError,
    MemoryLimitError,
)
from visionllm_edge.runtime.events import (
    DetectionEvent,
    DoneEvent,
    Event,
    GroupEvent,
    TokenEvent,
)
from visionllm_edge.runtime.language_model import LanguageModel
from visionllm_edge.runtime.llm.sampling import GenerationConfig
from visionllm_edge.runtime.model import VisionLLM
from visionllm_edge.runtime.pipelines.chat import ChatSession
from visionllm_edge.runtime.pipelines.text import TextChat
from visionllm_edge.runtime.results import (
    ChatResult,
    Detection,
    DetectionResult,
    Span,
    TextResult,
)

__all__ = [
    "BackendError",
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
    "GroupEvent",
    "InputError",
    "LanguageModel",
    "MemoryLimitError",
    "Span",
    "TextChat",
    "TextResult",
    "TokenEvent",
    "VisionLLM",
]
