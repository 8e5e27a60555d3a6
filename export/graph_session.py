"""Run a graph that is in memory in ONNX Runtime, as it stands: nothing is rewritten or fused."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from visionllm_edge.export.passes.share_weights import WeightFile
from visionllm_edge.runtime.errors import ExportError
from visionllm_edge.runtime.ports import Array

__all__ = ["GraphSession"]


class GraphSession:
    """A graph loaded in ONNX Runtime. Use as a context manager.

    Args:
        model: its large weights move to a file that goes when the session is closed, so the model
            is not usable afterwards.
        threads: of ONNX Runtime; 0 leaves it to it.
    """

    def __init__(self, model: ir.Model, *, threads: int = 0) -> None:
        """Load it.

        Raises:
            ExportError: ONNX Runtime does not take it.
        """
        self.name = str(model.graph.name)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        self._folder = tempfile.TemporaryDirectory(prefix="visionllm-edge-")
        folder = Path(self._folder.name)
        try:
            with WeightFile(folder / "graph.weights") as weights:
                weights.take(model)
                ir.save(model, folder / "graph.onnx")
            self._session = ort.InferenceSession(
                str(folder / "graph.onnx"), options, providers=["CPUExecutionProvider"]
            )
        except ExportError:
            self._folder.cleanup()
            raise
        # ONNX Runtime's exceptions share no base class but Exception.
        except Exception as e:
            self._folder.cleanup()
            raise self._refused(e) from e
        self.outputs = [value.name or "" for value in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run it once; outputs in fp16 come back in fp32.

        Raises:
            ExportError: it does not run.
        """
        try:
            arrays = self._session.run(None, dict(feeds))
        except Exception as e:
            raise self._refused(e) from e
        return {
            key: np.array(a, np.float32) if a.dtype == np.float16 else np.array(a)
            for key, a in zip(self.outputs, arrays, strict=True)
        }

    def _refused(self, error: Exception) -> ExportError:
        return ExportError(
            f"graph '{self.name}' as lowered does not run in ONNX Runtime {ort.__version__}: "
            f"{error}"
        )

    def __enter__(self) -> GraphSession:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the files."""
        del self._session
        self._folder.cleanup()
