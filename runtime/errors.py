"""The one tree of errors that this package raises on purpose.

    EdgeError
    ├── ConfigError          a config value that cannot be used
    ├── CheckpointError      a checkpoint folder with missing, mis-shaped or unreadable content
    ├── ExportError          a component that could not be turned into a graph
    ├── ParityError          a compiled stage that does not compute what the model computes
    ├── PluginError          an operator whose form is missing or was used wrongly
    ├── BundleError          a bundle that is changed, incomplete or not a bundle
    ├── BackendError         a stage that could not be loaded or run
    ├── MemoryLimitError     a bundle that needs more memory than the machine has free
    ├── MeasurementError     a measurement that would say something wrong
    ├── StoppedError         the caller's own step callback ended a long run
    └── InputError           something that the user gave: image, classes, prompt
        └── ContextError     a prompt that is longer than the model's context

A message says what went wrong, what was expected, what came instead, and what to do next. The
command line prints it on one line without a traceback. A mistake inside this package is no
``EdgeError``: it stays an ``AssertionError`` or a ``TypeError``.
"""

from __future__ import annotations

__all__ = [
    "BackendError",
    "BundleError",
    "CheckpointError",
    "ConfigError",
    "ContextError",
    "EdgeError",
    "ExportError",
    "InputError",
    "MeasurementError",
    "MemoryLimitError",
    "ParityError",
    "PluginError",
    "StoppedError",
]


class EdgeError(Exception):
    """Base of every error that a caller is meant to catch."""


class ConfigError(EdgeError):
    """A config value is missing or cannot be used."""


class CheckpointError(EdgeError):
    """A checkpoint folder lacks a key, or holds one of the wrong shape or format."""


class ExportError(EdgeError):
    """A component could not be turned into a graph that passes its checks."""


class ParityError(EdgeError):
    """A compiled stage differs from the model by more than the parity rule allows."""


class PluginError(EdgeError):
    """An operator's form is missing, or its inputs break the operator's specification."""


class BundleError(EdgeError):
    """A bundle is changed, incomplete, unsafe, or no bundle at all."""


class BackendError(EdgeError):
    """A backend could not load a stage, or a stage was given inputs it cannot take."""


class MemoryLimitError(EdgeError):
    """A bundle needs more memory than the machine has free; nothing was loaded."""


class MeasurementError(EdgeError):
    """Numbers were taken, but would mislead: too few, or the machine changed meanwhile."""


class StoppedError(EdgeError):
    """A step callback asked to end the run; there is no result."""


class InputError(EdgeError):
    """Something the user gave cannot be used: an image, a class list, a prompt, an option."""


class ContextError(InputError):
    """A prompt, or a conversation, is longer than the model's context."""
