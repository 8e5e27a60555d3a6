"""Bundles: every damage is found and named; writing is all or nothing."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from visionllm_edge.runtime import bundle as bundle_module
from visionllm_edge.runtime.bundle import (
    Bundle,
    BundleWriter,
    lock_folder,
    make_locked_folder,
    sha256_of_file,
    unlock_folder,
)
from visionllm_edge.runtime.errors import BundleError
from visionllm_edge.runtime.manifest import Manifest

EXAMPLE = Path(__file__).parent / "manifest_example.json"


def manifest() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(EXAMPLE.read_text())
    return content


def fill(writer: BundleWriter, flavour: bytes = b"") -> None:
    """The files that the example manifest names."""
    for stage in manifest()["stages"].values():
        for variant in stage["variants"]:
            writer.add_bytes(variant["model"], b"graph " + variant["model"].encode() + flavour)
    writer.add_array("tables/embed_tokens.npy", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.add_array("tables/superlink_det.npy", np.ones((4, 8), dtype=np.float32))
    writer.path("tokenizer/tokenizer.json").write_text("{}")


def write(target: Path, flavour: bytes = b"") -> Path:
    with BundleWriter(target) as writer:
        fill(writer, flavour)
        return writer.commit(manifest())


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write(tmp_path / "demo")


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_written_bundle_opens(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    assert opened.manifest.name == "hand-made"
    assert opened.size_bytes == sum(
        p.stat().st_size for p in bundle.rglob("*") if p.is_file() and p.name != "manifest.json"
    )
    entry = opened.manifest.files["tokenizer/tokenizer.json"]
    assert (entry.size, entry.sha256) == (2, hashlib.sha256(b"{}").hexdigest())
    assert names(bundle.parent) == ["demo"]


def test_lookup(bundle: Path) -> None:
    opened = Bundle.open(str(bundle))
    assert opened.stage_model("vision_encoder").read_bytes() == b"graph stages/vision_encoder.onnx"
    assert opened.stage_model("det_backbone", (64, 96)).name == "det_backbone.64x96.onnx"
    table = opened.array("tables/embed_tokens.npy")
    assert isinstance(table, np.memmap) and table.tolist()[2] == [8, 9, 10, 11]
    with pytest.raises(BundleError, match="no stage 'pose_box'"):
        opened.stage_model("pose_box")
    with pytest.raises(BundleError, match=r"no graph for bucket \(32, 32\)"):
        opened.stage_model("det_backbone", (32, 32))
    with pytest.raises(BundleError, match="no file 'other'"):
        opened.file("other")
    with pytest.raises(BundleError, match="is not an array"):
        opened.array("tokenizer/tokenizer.json")


@pytest.mark.parametrize("position", [0, 10, -1])
def test_one_changed_byte_in_any_file(bundle: Path, position: int) -> None:
    for relative in Bundle.open(bundle).manifest.files:
        path = bundle / relative
        content = bytearray(path.read_bytes())
        whole = bytes(content)
        content[min(position, len(content) - 1)] ^= 1
        path.write_bytes(content)
        with pytest.raises(BundleError, match=f"file '{relative}' is changed"):
            Bundle.open(bundle)
        path.write_bytes(whole)
    Bundle.open(bundle)


def test_without_verification_sizes_still_count(bundle: Path) -> None:
    path = bundle / "stages/llm_decoder.onnx"
    path.write_bytes(path.read_bytes()[::-1])
    Bundle.open(bundle, verify=False)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(BundleError, match=r"decoder\.onnx' is changed, its size is 30 bytes"):
        Bundle.open(bundle, verify=False)


def remove(bundle: Path) -> None:
    (bundle / "stages/llm_decoder.onnx").unlink()


def add(bundle: Path) -> None:
    (bundle / "stages/new.onnx").write_text("x")


def add_hidden(bundle: Path) -> None:
    (bundle / ".note").write_text("x")


def link_inside(bundle: Path) -> None:
    target = bundle / "tokenizer/tokenizer.json"
    target.rename(bundle.parent / "moved.json")
    target.symlink_to(bundle.parent / "moved.json")


def link_folder(bundle: Path) -> None:
    (bundle / "tables").rename(bundle.parent / "tables")
    (bundle / "tables").symlink_to(bundle.parent / "tables")


def pipe(bundle: Path) -> None:
    os.mkfifo(bundle / "tables/pipe")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove, "'stages/llm_decoder.onnx' is missing"),
        (add, "'stages/new.onnx' is extra"),
        (add_hidden, "'.note' is extra"),
        (link_inside, "'tokenizer/tokenizer.json' is a link"),
        (link_folder, "'tables' is a link"),
        (pipe, "'tables/pipe' is a link or a special file"),
    ],
)
def test_listing(bundle: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(bundle)
    with pytest.raises(BundleError) as refusal:
        Bundle.open(bundle, verify=False)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[1]", "[" * 100_000, '{"schema": NaN}', "\xff\xfe"]
)
def test_manifests_that_are_none(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(BundleError, match="demo"):
        Bundle.open(bundle)


@pytest.mark.parametrize("path", ["/etc/passwd", "../outside"])
def test_a_listed_path_outside(bundle: Path, path: str) -> None:
    (bundle.parent / "outside").write_text("x")
    content = json.loads((bundle / "manifest.json").read_text())
    content["files"][path] = {"size": 1, "sha256": sha256_of_file(bundle.parent / "outside")}
    (bundle / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(BundleError, match="is not allowed"):
        Bundle.open(bundle)


def test_places_without_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path, tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(BundleError, match=r"expected a folder with a manifest\.json"):
            Bundle.open(place)


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="export failed"),
        BundleWriter(tmp_path / "new") as writer,
    ):
        fill(writer)
        raise RuntimeError("export failed")
    assert names(tmp_path) == []


def test_an_error_leaves_the_old_bundle(bundle: Path) -> None:
    before = {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file()}
    with pytest.raises(KeyboardInterrupt), BundleWriter(bundle) as writer:
        fill(writer, b"new")
        raise KeyboardInterrupt
    assert {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file()} == before
    assert names(bundle.parent) == ["demo"]


def test_leaving_without_commit_publishes_nothing(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "new") as writer:
        fill(writer)
    assert names(tmp_path) == []


def test_replacing(bundle: Path) -> None:
    # A damaged bundle can be replaced too: that is what one compiles again for.
    (bundle / "stages/llm_decoder.onnx").unlink()
    assert write(bundle, b" second") == bundle
    assert Bundle.open(bundle).stage_model("llm_decoder").read_bytes().endswith(b" second")
    assert names(bundle.parent) == ["demo"]


def test_the_old_bundle_stands_until_the_new_one_is_complete(bundle: Path) -> None:
    with BundleWriter(bundle) as writer:
        fill(writer, b" second")
        assert not Bundle.open(bundle).stage_model("llm_decoder").read_bytes().endswith(b" second")
        with pytest.raises(BundleError, match="'family' is missing"):
            writer.commit({k: v for k, v in manifest().items() if k != "family"})
    assert not Bundle.open(bundle).stage_model("llm_decoder").read_bytes().endswith(b" second")


def test_a_failing_rename_puts_the_old_bundle_back(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def refuse_new(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError("disk is gone")
        return rename(self, target)

    with pytest.raises(OSError, match="disk is gone"), BundleWriter(bundle) as writer:
        fill(writer, b" second")
        monkeypatch.setattr(Path, "rename", refuse_new)
        writer.commit(manifest())
    assert names(bundle.parent) == ["demo"]
    assert not Bundle.open(bundle).stage_model("llm_decoder").read_bytes().endswith(b" second")


def test_an_empty_folder_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    Bundle.open(write(tmp_path / "empty"))


def test_what_is_no_bundle_is_not_overwritten(tmp_path: Path, bundle: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.png").write_text("dear cat")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(bundle)
    for name, message in (("photos", "no bundle"), ("file", "no folder"), ("link", "no folder")):
        with pytest.raises(BundleError, match=message):
            BundleWriter(tmp_path / name)
    (bundle / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"holds 'notes\.txt'"):
        BundleWriter(bundle)
    assert (tmp_path / "photos/cat.png").read_text() == "dear cat"
    assert (bundle / "notes.txt").read_text() == "mine"


def test_a_bundle_of_another_version_may_be_replaced(tmp_path: Path, bundle: Path) -> None:
    path = bundle / "manifest.json"
    old = json.loads(path.read_text()) | {"schema": 1, "gone": True}
    path.write_text(json.dumps(old))
    with pytest.raises(BundleError, match="schema"):
        Bundle.open(bundle)
    Bundle.open(write(bundle))
    path.write_text('{"photos": 3}')
    with pytest.raises(BundleError, match="lists no files"):
        BundleWriter(bundle)


def test_a_file_that_came_meanwhile_is_not_lost(bundle: Path) -> None:
    with BundleWriter(bundle) as writer:
        fill(writer)
        (bundle / "notes.txt").write_text("mine")
        with pytest.raises(BundleError, match=r"holds 'notes\.txt'"):
            writer.commit(manifest())
    assert (bundle / "notes.txt").read_text() == "mine"


def test_commit_takes_dataclasses(tmp_path: Path, bundle: Path) -> None:
    with BundleWriter(tmp_path / "second") as writer:
        fill(writer)
        writer.commit(Manifest.from_dict(json.loads((bundle / "manifest.json").read_text())))
    first, second = Bundle.open(bundle).manifest, Bundle.open(tmp_path / "second").manifest
    assert first == second


@pytest.mark.parametrize("missing", ["tables/embed_tokens.npy", "stages/llm_decoder.onnx"])
def test_an_incomplete_bundle_is_not_published(tmp_path: Path, missing: str) -> None:
    with BundleWriter(tmp_path / "new") as writer:
        fill(writer)
        writer.path(missing).unlink()
        with pytest.raises(BundleError, match=f"names '{missing}', which 'files' does not list"):
            writer.commit(manifest())
    assert names(tmp_path) == []


def test_a_report_with_nan_is_refused(tmp_path: Path) -> None:
    content = manifest()
    content["stages"]["llm_decoder"]["parity"] = {"max_error": float("nan")}
    with BundleWriter(tmp_path / "new") as writer:
        fill(writer)
        with pytest.raises(BundleError, match="JSON cannot express"):
            writer.commit(content)


@pytest.mark.parametrize("path", ["../escape", "/tmp/escape", "manifest.json"])
def test_the_writer_stays_inside(tmp_path: Path, path: str) -> None:
    with BundleWriter(tmp_path / "new") as writer, pytest.raises(BundleError, match="not allowed"):
        writer.add_bytes(path, b"x")


KILLED = """
import os, signal, sys
from pathlib import Path
from visionllm_edge.runtime import bundle
sys.path.insert(0, {tests!r})
import test_bundle
with bundle.BundleWriter({target!r}) as writer:
    test_bundle.fill(writer, b" second")
    if {complete}:
        # Killed with everything written, between the manifest and the new name.
        Path.rename = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
        writer.commit(test_bundle.manifest())
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize("existing", [False, True])
def test_a_killed_compile(tmp_path: Path, complete: bool, existing: bool) -> None:
    target = tmp_path / "demo"
    if existing:
        write(target)
    code = KILLED.format(tests=str(Path(__file__).parent), target=str(target), complete=complete)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    (partial,) = [p for p in tmp_path.iterdir() if p.name != "demo"]
    assert (partial / "manifest.json").exists() == complete
    with pytest.raises(BundleError, match="did not finish"):
        Bundle.open(partial)
    if existing:
        assert not Bundle.open(target).stage_model("llm_decoder").read_bytes().endswith(b" second")
    else:
        assert not target.exists()
    write(target, b" third")
    assert Bundle.open(target).stage_model("llm_decoder").read_bytes().endswith(b" third")
    assert names(tmp_path) == ["demo"]


def test_killed_between_the_two_renames(bundle: Path) -> None:
    # What such a kill leaves: the old bundle set aside, the target gone.
    bundle.rename(bundle.parent / ".demo.replaced-0123")
    with pytest.raises(RuntimeError, match="stop"), BundleWriter(bundle):
        raise RuntimeError("stop")
    Bundle.open(bundle)
    assert names(bundle.parent) == ["demo"]


def test_a_running_compile_is_left_alone(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "demo") as first:
        fill(first, b" first")
        write(tmp_path / "demo", b" other")
        first.commit(manifest())
    assert (
        Bundle.open(tmp_path / "demo").stage_model("llm_decoder").read_bytes().endswith(b" first")
    )


@pytest.mark.parametrize("finished", [True, False], ids=["it is gone", "it is being removed"])
def test_a_new_folder_that_another_process_took_for_a_leftover_is_made_again(
    finished: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    theirs: list[int | None] = []

    def lock_after_the_other(folder: Path) -> int | None:
        asked.append(folder)
        if len(asked) == 1 and finished:
            folder.rmdir()
        elif len(asked) == 1:
            theirs.append(lock_folder(folder))
        return lock_folder(folder)

    monkeypatch.setattr(bundle_module, "lock_folder", lock_after_the_other)
    made, lock = make_locked_folder(tmp_path / ".new-")
    assert made.is_dir() and made != asked[0] and made.name.startswith(".new-")
    assert lock is not None and lock_folder(made) is None
    assert [path.name for path in tmp_path.iterdir()] == [made.name]
    for each in (lock, *theirs):
        unlock_folder(each)


def test_without_locks_a_folder_is_made_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_module, "lock_folder", lambda folder: None)
    made, lock = make_locked_folder(tmp_path / ".new-")
    assert lock is None and list(tmp_path.iterdir()) == [made]
