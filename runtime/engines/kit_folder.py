"""A kit on disk: opened with every check, and the place in it where a device builds.

kit.json              the plan
graphs/               lowered graphs and their weights
files/                what the sealed bundle takes over: tables, tokenizer, golden files
plugins/              compiled kernels for the plugins, if any
build/                made by the device: engines, records, logs; not part of the kit
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from visionllm_edge.runtime.bundle import regular_files, sha256_of_file
from visionllm_edge.runtime.engines.external_data import check_external_data
from visionllm_edge.runtime.engines.plan import KIT_NAME, KitPlan, StagePlan
from visionllm_edge.runtime.errors import BundleError
from visionllm_edge.runtime.manifest import SCHEMA, FileEntry

__all__ = ["BUILD_FOLDER", "Kit", "write_kit_plan"]

BUILD_FOLDER = "build"
_PLAN_LIMIT_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Kit:
    """An opened kit. Made by :meth:`open`."""

    root: Path
    plan: KitPlan

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Kit:
        """Open a kit; names, sizes and links are checked, hashes only by :meth:`verify_stage`.

        Raises:
            BundleError: no kit, of another schema, or not as it was made.
        """
        root = Path(os.path.abspath(path))
        kit = cls(root, _read_plan(root))
        kit._check_listing()
        schema = kit.plan.manifest.get("schema")
        if schema != SCHEMA:
            raise BundleError(
                f"kit {root.name!r}: would seal a bundle of schema {schema!r}, this version reads "
                f"{SCHEMA}. Make the kit again with the version of visionllm-edge that builds it."
            )
        return kit

    def verify_stage(self, plan: StagePlan) -> dict[str, str]:
        """Hash the graph of a stage and every file it reads, before a parser opens them.

        Returns:
            Digest of each of these files by path.

        Raises:
            BundleError: a file differs from what was made, or a graph reads what it must not.
        """
        self.verify_file(plan.graph)
        digests = {plan.graph: self.plan.files[plan.graph].sha256}
        for weights in check_external_data(self.root / plan.graph, self.root):
            if weights not in self.plan.files:
                raise BundleError(
                    f"kit {self.root.name!r}: graph {plan.graph!r} reads {weights!r}, which the "
                    "kit does not list. Make the kit again."
                )
            self.verify_file(weights)
            digests[weights] = self.plan.files[weights].sha256
        return digests

    def verify_rest(self) -> None:
        """Hash every file that is no graph: what the sealed bundle takes over."""
        graphs = {plan.graph for plan in self.plan.stages}
        for relative in self.plan.files:
            if relative not in graphs and not relative.endswith(".weights"):
                self.verify_file(relative)

    def file(self, relative: str) -> Path:
        """Where a listed file stands."""
        assert relative in self.plan.files, relative
        return self.root / relative

    def built(self, name: str, suffix: str) -> Path:
        """A file of the build folder: `engine`, `json` or `log` of a stage."""
        return self.root / BUILD_FOLDER / f"{name}.{suffix}"

    @contextlib.contextmanager
    def building(self) -> Iterator[None]:
        """Make the build folder, and keep a second build out of it.

        Raises:
            BundleError: another process builds in this kit, or the folder is a link.
        """
        folder = self.root / BUILD_FOLDER
        if folder.is_symlink():
            raise BundleError(f"kit {self.root.name!r}: {BUILD_FOLDER!r} is a link, not allowed")
        folder.mkdir(exist_ok=True, mode=0o700)
        handle = os.open(folder, os.O_RDONLY)
        try:
            _lock(handle, self.root.name)
            yield
        finally:
            os.close(handle)

    def verify_file(self, relative: str) -> None:
        """Hash one listed file.

        Raises:
            BundleError: it differs from what was made.
        """
        if sha256_of_file(self.root / relative) != self.plan.files[relative].sha256:
            raise BundleError(
                f"kit {self.root.name!r}: file {relative!r} is changed, its sha256 differs from "
                f"{KIT_NAME}. Copy the kit again or make it again."
            )

    def _check_listing(self) -> None:
        found = {
            path: size
            for path, size in regular_files(self.root).items()
            if path != KIT_NAME and not path.startswith(f"{BUILD_FOLDER}/")
        }
        listed = self.plan.files
        for kind, names in (
            ("missing", listed.keys() - found.keys()),
            ("extra, the kit does not list it", found.keys() - listed.keys()),
            ("changed, its size differs", {n for n in listed if found.get(n) != listed[n].size}),
        ):
            if names:
                raise BundleError(
                    f"kit {self.root.name!r}: file {min(names)!r} is {kind}. Copy the kit again "
                    "or make it again."
                )


def write_kit_plan(folder: Path, plan: KitPlan) -> None:
    """List and hash the files of a folder and write `kit.json` last.

    Raises:
        BundleError: the plan names a file that is not there.
    """
    entries = {
        relative: FileEntry(size, sha256_of_file(folder / relative))
        for relative, size in sorted(regular_files(folder).items())
        if relative != KIT_NAME and not relative.startswith(f"{BUILD_FOLDER}/")
    }
    content = dataclasses.replace(plan, files=entries).to_dict()
    KitPlan.from_dict(content)
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    (folder / KIT_NAME).write_text(text, encoding="utf-8")


def _read_plan(root: Path) -> KitPlan:
    path = root / KIT_NAME
    if path.is_symlink() or not path.is_file():
        raise BundleError(
            f"kit {root.name!r}: expected a folder with a {KIT_NAME}, found none. Give the folder "
            "that `visionllm-edge kit make` wrote."
        )
    try:
        if path.stat().st_size > _PLAN_LIMIT_BYTES:
            raise BundleError(f"kit {root.name!r}: {KIT_NAME} is too large to be one")
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as e:
        raise BundleError(
            f"kit {root.name!r}: {KIT_NAME} cannot be read as JSON ({e}). Copy the kit again."
        ) from e
    return KitPlan.from_dict(data)


def _lock(handle: int, name: str) -> None:
    """Hold the build folder for as long as this process lives; the system lets go when it dies."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        raise BundleError(
            f"kit {name!r}: another process is building in it. Wait for it, or copy the kit."
        ) from e
