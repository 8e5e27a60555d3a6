"""Memory, streams, events and graphs of one device, behind a small interface that can be faked."""

from __future__ import annotations

from visionllm_edge.runtime.device.arrays import DeviceArray
from visionllm_edge.runtime.device.base import (
    Device,
    DeviceBuffer,
    Event,
    Graph,
    HostBuffer,
    Stream,
)

__all__ = ["Device", "DeviceArray", "DeviceBuffer", "Event", "Graph", "HostBuffer", "Stream"]
