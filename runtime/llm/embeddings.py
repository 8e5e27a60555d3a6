"""The embedding table beside the decoder graph, and the super-link tables.

The token table is memory-mapped: a 7B model's 500 MB stay on disk but for the rows that are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.errors import BundleError

__all__ = ["EmbeddingTable", "SuperLink"]


class EmbeddingTable:
    """Rows of a ``[V, D]`` table (float32 or float16 on disk), read on demand as float32."""

    def __init__(self, table_VD: NDArray[np.floating]) -> None:  # noqa: N803 (axis letters)
        """Take a table; it is never copied as a whole."""
        self._table = table_VD

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> EmbeddingTable:
        """The bundle's table, mapped and not read.

        Raises:
            BundleError: not an array of the model's shape and a float type.
        """
        llm = bundle.manifest.model.llm
        name = bundle.manifest.model.embed_table
        return cls(_float_table(bundle, name, (llm.vocab_size, llm.hidden_size)))

    @property
    def size(self) -> int:
        """V, the number of rows."""
        return int(self._table.shape[0])

    def rows(self, ids: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """Embeddings ``[len(ids), D]``, float32, a new array.

        Raises:
            BundleError: an id outside the table (tokenizer and table do not belong together).
        """
        index = np.asarray(ids, dtype=np.int64)
        if index.size and (index.min() < 0 or index.max() >= self.size):
            bad = int(index.max() if index.max() >= self.size else index.min())
            raise BundleError(
                f"embedding table: expected ids 0..{self.size - 1}, got {bad}. "
                "Tokenizer and table come from different checkpoints: compile again."
            )
        return np.array(self._table[index], dtype=np.float32)


@dataclass(frozen=True)
class SuperLink:
    """One super-link table and what it serves.

    Attributes:
        name: key of the manifest, for example ``det``.
        tokens: routing tokens whose step it completes.
        rows_ND: the rows that follow the routing token, float32 ``[N, D]``.
        decoder: which decoder reads the hidden states of these rows; empty if the bundle has none.
    """

    name: str
    tokens: tuple[str, ...]
    rows_ND: NDArray[np.float32]  # noqa: N815 (axis letters)
    decoder: str

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> tuple[SuperLink, ...]:
        """Every table that the manifest's ``superlink`` section names.

        An entry without a table is left out: its routing tokens cannot be answered, and the
        runtime then never lets the model write them.

        Raises:
            BundleError: a table is missing or has another shape.
        """
        width = bundle.manifest.model.llm.hidden_size
        return tuple(
            cls(
                name=name,
                tokens=spec.tokens,
                rows_ND=np.array(
                    _float_table(bundle, spec.table, (spec.rows, width)), dtype=np.float32
                ),
                decoder=spec.decoder or "",
            )
            for name, spec in bundle.manifest.model.superlink.items()
            if spec.table is not None
        )


def _float_table(bundle: Bundle, name: str, shape: tuple[int, int]) -> NDArray[np.floating]:
    table = bundle.array(name)
    if table.shape != shape or not np.issubdtype(table.dtype, np.floating):
        raise BundleError(
            f"table '{name}': expected float {shape}, got {table.dtype} {table.shape}. "
            "Compile the checkpoint again."
        )
    return cast("NDArray[np.floating]", table)
