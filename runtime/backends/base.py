"""What every backend offers. Names no library; arrays go in and out as numpy.

Between the stages of one chain they need not: ``run_kept`` leaves outputs where the backend made
them, and ``run`` of any stage of that backend takes them back in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.ports import Array, StagePorts, Tensor

__all__ = ["PAST_PREFIX", "PRESENT_PREFIX", "Backend", "KVCache", "StageOptions", "StageRunner"]

# An output ``present.X`` is the new content of the input ``past_key_values.X``.
PAST_PREFIX = "past_key_values."
PRESENT_PREFIX = "present."


@dataclass(frozen=True)
class StageOptions:
    """How to load a stage.

    Attributes:
        threads: inside one operator; None leaves it to the backend (all physical cores).
        custom_op_libraries: shared libraries with operators that the graph needs.
        cpu_kernels: run our operators as compiled kernels where they are built and the backend
            takes them; otherwise the functions in the graph run, with the same answers.
        bundle: where the stage comes from. A backend whose files are native code loads nothing
            without it, and compares every such file with the bundle's manifest.
        sha256: digest that the stage's file must have where no bundle vouches for it yet: the
            build gives it for an engine that it has just made.
        profile: beginning of a file name: a backend that can then writes down how long every node
            takes, which costs time in every run; its runner has `end_profiling`.
    """

    threads: int | None = None
    custom_op_libraries: tuple[Path, ...] = ()
    cpu_kernels: bool = True
    bundle: Bundle | None = None
    sha256: str | None = None
    profile: str | None = None


class KVCache(Protocol):
    """The key/value buffers of one conversation, of a fixed capacity and updated in place."""

    @property
    def capacity(self) -> int:
        """Rows (positions) that fit."""
        ...

    @property
    def nbytes(self) -> int:
        """Memory of all buffers."""
        ...

    def array(self, name: str) -> Array:
        """The buffer behind an input such as ``past_key_values.0.key``, on the host."""
        ...


class StageRunner(Protocol):
    """One loaded stage. For one thread at a time."""

    @property
    def ports(self) -> StagePorts:
        """The stage's named ends."""
        ...

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Array]:
        """Run the stage once.

        Args:
            inputs: one array per input port, from the host or as ``run_kept`` gave it. They are
                read, never written.

        Returns:
            One array per output port. **They belong to the runner and the next run overwrites
            them**: copy what has to live longer.

        Raises:
            BackendError: an input does not match its port, or the backend failed.
        """
        ...

    def run_kept(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once and leave the outputs where the backend made them.

        Args:
            inputs: as for :meth:`run`.

        Returns:
            One array per output port. They are the caller's: no later run touches them.
            ``numpy.asarray`` reads any of them.

        Raises:
            BackendError: as :meth:`run`.
        """
        ...

    def new_cache(self, capacity: int) -> KVCache:
        """Zeroed buffers for every ``past_key_values.*`` input, with room for ``capacity`` rows.

        Raises:
            BackendError: the stage has no such inputs, or fixes another capacity.
        """
        ...

    def run_with_cache(self, inputs: Mapping[str, Tensor], cache: KVCache) -> dict[str, Array]:
        """Run once with the cache as past and as present: it is updated in place, never copied.

        Args:
            inputs: one array per input port that is not part of the cache.
            cache: made by ``new_cache`` of this runner. If the run fails, its rows from
                ``past_length`` on are undefined.

        Returns:
            As :meth:`run`, without the ``present.*`` outputs.

        Raises:
            BackendError: as :meth:`run`, or the cache does not fit this stage.
        """
        ...


class Backend(Protocol):
    """Loads stages."""

    @property
    def name(self) -> str:
        """As in a bundle's target."""
        ...

    def load_stage(self, path: Path, ports: StagePorts, options: StageOptions) -> StageRunner:
        """Load a graph and check that its ends are the ports.

        Raises:
            BackendError: the graph cannot be loaded, or has other ends than the manifest says.
        """
        ...
