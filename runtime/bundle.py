"""A bundle: the folder that is shipped. Reading it with every check, and writing it all or nothing.

Reading refuses a folder in which a file is changed, missing, extra, a link or outside. The hashes
tell damage and mix-ups from the bundle that was compiled; they are no signature, and a bundle from
a stranger is as trustworthy as the stranger.

Writing goes to a hidden folder beside the target, which gets its manifest last and its name at the
very end. Whatever is interrupted leaves the old bundle, or none, and a hidden folder that does not
load and that the next compile to the same place removes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from visionllm_edge.runtime.errors import BundleError
from visionllm_edge.runtime.manifest import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    Variant,
    check_relative,
)
from visionllm_edge.runtime.ports import Array

__all__ = [
    "Bundle",
    "BundleWriter",
    "Manifest",
    "lock_folder",
    "make_locked_folder",
    "regular_files",
    "sha256_of_file",
    "unlock_folder",
]

_log = logging.getLogger(__name__)
_PARTIAL = ".partial-"
_REPLACED = ".replaced-"
# A manifest of the released 7B model has some 20 kB.
_MANIFEST_LIMIT_BYTES = 16 * 2**20
_CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. Made by :meth:`open`."""

    root: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = True) -> Bundle:
        """Open and check a bundle.

        Args:
            path: the folder.
            verify: also hash every file. Names and sizes are checked in any case.

        Raises:
            BundleError: not a bundle, of another schema, or not as it was compiled.
        """
        root = Path(path)
        if root.name.startswith(".") and (_PARTIAL in root.name or _REPLACED in root.name):
            raise BundleError(
                f"bundle {str(root)!r}: left over from a compile that did not finish. "
                "Compile again; this folder is removed then."
            )
        bundle = cls(root, _read_manifest(root))
        bundle._check_listing()
        if verify:
            bundle.verify()
        return bundle

    def verify(self) -> None:
        """Hash every file.

        Raises:
            BundleError: naming the first file that differs from what was compiled.
        """
        for relative, entry in self.manifest.files.items():
            if sha256_of_file(self.root / relative) != entry.sha256:
                raise BundleError(
                    f"bundle {str(self.root)!r}: file {relative!r} is changed, its sha256 differs "
                    "from the manifest. Copy the bundle again or compile it again."
                )

    @property
    def size_bytes(self) -> int:
        """Of all files but the manifest."""
        return sum(entry.size for entry in self.manifest.files.values())

    def file(self, relative: str) -> Path:
        """Where a listed file stands.

        Raises:
            BundleError: the manifest does not list it.
        """
        if relative not in self.manifest.files:
            raise BundleError(f"bundle {str(self.root)!r}: no file {relative!r} in the manifest")
        return self.root / relative

    def variant(self, stage: str, bucket: tuple[int, int] | None = None) -> Variant:
        """The entry of a stage's graph, for a size bucket where the stage has several.

        Raises:
            BundleError: no such stage, or none for that bucket.
        """
        spec = self.manifest.stages.get(stage)
        if spec is None:
            raise BundleError(
                f"bundle {str(self.root)!r}: no stage {stage!r}; it has "
                f"{', '.join(self.manifest.stages)}. Compile a checkpoint that includes it."
            )
        for variant in spec.variants:
            if variant.bucket == bucket:
                return variant
        raise BundleError(
            f"bundle {str(self.root)!r}: stage {stage!r} has no graph for bucket {bucket}; "
            f"it has {[variant.bucket for variant in spec.variants]}"
        )

    def stage_model(self, stage: str, bucket: tuple[int, int] | None = None) -> Path:
        """The graph of a stage; see :meth:`variant`."""
        return self.file(self.variant(stage, bucket).model)

    def array(self, relative: str) -> Array:
        """A ``.npy`` file of the bundle, mapped into memory and read-only.

        Raises:
            BundleError: not listed, or not an array.
        """
        try:
            array = np.load(self.file(relative), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as e:
            raise BundleError(
                f"bundle {str(self.root)!r}: file {relative!r} is not an array ({e})"
            ) from e
        if not isinstance(array, np.ndarray):
            raise BundleError(f"bundle {str(self.root)!r}: file {relative!r} is not one array")
        return array

    def _check_listing(self) -> None:
        found = regular_files(self.root)
        found.pop(MANIFEST_NAME, None)
        listed = self.manifest.files
        for kind, names in (
            ("missing", listed.keys() - found.keys()),
            ("extra, the manifest does not list it", found.keys() - listed.keys()),
            ("changed, its size", {n for n in listed if found.get(n) != listed[n].size}),
        ):
            if names:
                name = min(names)
                numbers = (
                    f" is {found[name]} bytes, expected {listed[name].size}"
                    if name in found and name in listed
                    else ""
                )
                raise BundleError(
                    f"bundle {str(self.root)!r}: file {name!r} is {kind}{numbers}. "
                    "Copy the bundle again or compile it again."
                )


class BundleWriter:
    """Writes a bundle: files into a hidden folder, then :meth:`commit`.

    Use it as a context manager; leaving it without ``commit`` removes what was written and leaves
    the target as it was. What stands at the target is replaced only if it is a bundle without
    foreign files in it, or an empty folder.
    """

    def __init__(self, target: str | os.PathLike[str]) -> None:
        """Note the target.

        Raises:
            BundleError: something stands there that is not a bundle.
        """
        # Resolved now, so that a change of the working directory cannot move the target.
        self._target = Path(os.path.abspath(target))
        self._partial: Path | None = None
        self._lock: int | None = None
        _refuse_unless_replaceable(self._target)

    def __enter__(self) -> BundleWriter:
        """Make the hidden folder; clear away those of killed compiles."""
        parent = self._target.parent
        parent.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(self._target)
        start = parent / f".{self._target.name}{_PARTIAL}"
        self._partial, self._lock = make_locked_folder(start)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove whatever was not committed."""
        unlock_folder(self._lock)
        self._lock = None
        if self._partial is not None:
            shutil.rmtree(self._partial, ignore_errors=True)
            self._partial = None

    def path(self, relative: str) -> Path:
        """Where to write a file of the bundle; its folder exists then.

        Raises:
            BundleError: a path that no bundle may have.
        """
        check_relative(relative, "bundle writer")
        path = self._folder() / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def add_bytes(self, relative: str, content: bytes) -> None:
        """Write a file."""
        self.path(relative).write_bytes(content)

    def add_file(self, relative: str, source: str | os.PathLike[str]) -> None:
        """Copy a file (its content; a link is followed)."""
        shutil.copyfile(source, self.path(relative))

    def add_array(self, relative: str, array: Array) -> None:
        """Write a ``.npy`` file."""
        with self.path(relative).open("wb") as stream:
            np.save(stream, np.ascontiguousarray(array), allow_pickle=False)

    def commit(self, manifest: Manifest | Mapping[str, object]) -> Path:
        """Finish: list and hash the files, write the manifest, put the bundle in place.

        Args:
            manifest: as dataclasses or as JSON; its ``files`` are filled in here.

        Returns:
            The bundle's folder.

        Raises:
            BundleError: the manifest is not valid for these files, or the target has become
                something that must not be replaced.
        """
        folder = self._folder()
        entries = {
            relative: FileEntry(size, sha256_of_file(folder / relative))
            for relative, size in sorted(regular_files(folder).items())
        }
        if isinstance(manifest, Manifest):
            content = dataclasses.replace(manifest, files=entries).to_dict()
        else:
            content = {**manifest, "files": {k: vars(v) for k, v in entries.items()}}
        _write_manifest(folder, content)
        # What cannot be read back must not be published.
        Bundle(folder, _read_manifest(folder))._check_listing()
        _refuse_unless_replaceable(self._target)
        self._put_in_place(folder)
        self._partial = None
        return self._target

    def _folder(self) -> Path:
        if self._partial is None:
            raise RuntimeError("a BundleWriter is used inside its with block, before commit")
        return self._partial

    def _put_in_place(self, folder: Path) -> None:
        target = self._target
        if not target.exists():
            folder.rename(target)
            return
        old = target.parent / f".{target.name}{_REPLACED}{secrets.token_hex(6)}"
        lock = lock_folder(target)
        try:
            target.rename(old)
            try:
                folder.rename(target)
            except BaseException:
                old.rename(target)
                raise
            shutil.rmtree(old, ignore_errors=True)
        finally:
            unlock_folder(lock)


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file.

    Raises:
        BundleError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as e:
        raise BundleError(f"file {str(path)!r} cannot be read ({e})") from e
    return digest.hexdigest()


def _read_manifest_json(root: Path) -> object:
    path = root / MANIFEST_NAME
    if path.is_symlink():
        raise BundleError(f"bundle {str(root)!r}: file {MANIFEST_NAME!r} is a link, not allowed")
    if not path.is_file():
        raise BundleError(
            f"bundle {str(root)!r}: expected a folder with a {MANIFEST_NAME}, found none. "
            "Give the folder that `visionllm-edge compile` wrote."
        )
    try:
        if path.stat().st_size > _MANIFEST_LIMIT_BYTES:
            raise BundleError(
                f"bundle {str(root)!r}: {MANIFEST_NAME} is larger than "
                f"{_MANIFEST_LIMIT_BYTES // 2**20} MiB"
            )
        data: object = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as e:
        raise BundleError(
            f"bundle {str(root)!r}: {MANIFEST_NAME} cannot be read as JSON ({e}). "
            "Copy the bundle again or compile it again."
        ) from e
    return data


def _read_manifest(root: Path) -> Manifest:
    data = _read_manifest_json(root)
    try:
        return Manifest.from_dict(data)
    except BundleError as e:
        raise BundleError(f"bundle {str(root)!r}: {e}") from e


def _write_manifest(folder: Path, content: Mapping[str, object]) -> None:
    try:
        text = json.dumps(content, indent=1, allow_nan=False)
    except (TypeError, ValueError) as e:
        raise BundleError(f"manifest: holds a value that JSON cannot express ({e})") from e
    with (folder / MANIFEST_NAME).open("w", encoding="utf-8") as stream:
        stream.write(text + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def regular_files(root: Path) -> dict[str, int]:
    """Sizes of all files below a folder, by relative path with '/'.

    Raises:
        BundleError: a link or a special file among them.
    """
    out: dict[str, int] = {}
    try:
        entries = list(_walk(root))
    except OSError as e:
        raise BundleError(f"bundle {str(root)!r}: folder cannot be listed ({e})") from e
    for entry in entries:
        relative = Path(entry.path).relative_to(root).as_posix()
        if entry.is_symlink() or not entry.is_file(follow_symlinks=False):
            raise BundleError(
                f"bundle {str(root)!r}: {relative!r} is a link or a special file; "
                "expected regular files only"
            )
        out[relative] = entry.stat(follow_symlinks=False).st_size
    return out


def _walk(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path)
            else:
                yield entry


def _refuse_unless_replaceable(target: Path) -> None:
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_dir():
        raise BundleError(f"{str(target)!r} exists and is no folder. Choose another place.")
    if not any(target.iterdir()):
        return
    try:
        foreign = sorted(regular_files(target).keys() - _listed_files(target))
    except BundleError as e:
        raise BundleError(
            f"{str(target)!r} exists and is no bundle, so it is not replaced "
            f"({e}). Choose another place, or remove it yourself."
        ) from e
    if foreign:
        raise BundleError(
            f"{str(target)!r} holds {foreign[0]!r}, which is not part of the bundle there, so it "
            "is not replaced. Move that file away, or choose another place."
        )


def _listed_files(target: Path) -> set[str]:
    """What a bundle of any version says it holds, so that an old one can be compiled anew."""
    data = _read_manifest_json(target)
    content = data if isinstance(data, dict) else {}
    files = content.get("files")
    if not isinstance(files, dict) or not isinstance(content.get("schema"), int):
        raise BundleError(f"{MANIFEST_NAME} lists no files of a bundle")
    return {*files, MANIFEST_NAME}


def _clear_leftovers(target: Path) -> None:
    """Remove hidden folders of killed compiles; put an old bundle back that lost its name."""
    for folder in target.parent.iterdir():
        kind = next(
            (k for k in (_PARTIAL, _REPLACED) if folder.name.startswith(f".{target.name}{k}")), None
        )
        if kind is None or folder.is_symlink() or not folder.is_dir():
            continue
        lock = lock_folder(folder)
        if lock is None:
            continue  # another compile is at work in it
        try:
            if kind == _REPLACED and not os.path.lexists(target):
                folder.rename(target)
                _log.warning("put back %s, which an interrupted compile had set aside", target)
            else:
                shutil.rmtree(folder, ignore_errors=True)
                _log.info("removed %s, left over from an interrupted compile", folder)
        finally:
            unlock_folder(lock)


def lock_folder(folder: Path) -> int | None:
    """Lock a folder for as long as this process lives; None when someone else holds it.

    The system drops the lock when the process dies, so it tells a killed compile from a running
    one where a process number could not (containers, reused numbers). Systems without such locks
    give None, and leftovers then stay.
    """
    try:
        import fcntl
    except ImportError:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def make_locked_folder(start: Path, *, mode: int = 0o777) -> tuple[Path, int | None]:
    """Make a folder whose new name begins as `start` does, and lock it.

    Another process that clears leftovers may come between the two and take it for one; then it is
    made again under another name.

    Returns:
        The folder and its lock, None on a system without such locks.
    """
    for last in (False,) * 7 + (True,):
        folder = start.with_name(f"{start.name}{secrets.token_hex(6)}")
        folder.mkdir(mode=mode)
        lock = None
        with contextlib.suppress(FileNotFoundError):
            lock = lock_folder(folder)
        if folder.exists() and (lock is not None or last):
            return folder, lock
        unlock_folder(lock)
        shutil.rmtree(folder, ignore_errors=True)
    raise BundleError(f"'{start.parent}': expected a new folder to stay, it was removed each time.")


def unlock_folder(lock: int | None) -> None:
    """Give a lock back; None is none."""
    if lock is not None:
        with contextlib.suppress(OSError):
            os.close(lock)
