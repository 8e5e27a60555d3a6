"""What a user can get wrong at the command line: one message, exit code 1 or 2, nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from visionllm_edge.runtime import VisionLLM
from visionllm_edge.runtime import shapes_world as world
from visionllm_edge.runtime.cli import main
from visionllm_edge.runtime.errors import BundleError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "scene.png"
    Image.fromarray(world.make_scene(np.random.default_rng(5)).image).save(path)
    return path


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def _detect(bundle: Path, image: Path, classes: str = "circle,star") -> Result:
    return _run("run", bundle, "--image", image, "--task", "detect", "--classes", classes, "--json")


def _refused(result: Result, *words: str, code: int = 1) -> None:
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


def test_not_an_image(tiny_bundle: Path, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    _refused(_detect(tiny_bundle, text), "notes.txt")
    _refused(_detect(tiny_bundle, tmp_path / "missing.png"), "missing.png")


def test_a_1x1_image(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "dot.png"
    Image.new("RGB", (1, 1)).save(path)
    _refused(_detect(tiny_bundle, path), "1x1")


def test_a_20000x20000_image_is_refused_from_its_header(tiny_bundle: Path, tmp_path: Path) -> None:
    """A valid PNG header and no pixels: decoding it would fail, refusing it must not."""
    path = tmp_path / "huge.png"
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    start = time.monotonic()
    _refused(_detect(tiny_bundle, path), "20000")
    assert time.monotonic() - start < 20


def test_grey_rgba_and_rotated_pictures_work(
    tiny_bundle: Path, photo: Path, tmp_path: Path
) -> None:
    rgb = Image.open(photo)
    model = VisionLLM.load(tiny_bundle)
    plain = model.detect(photo, ["circle", "star", "person"])
    rgba = tmp_path / "rgba.png"
    rgb.convert("RGBA").save(rgba)
    assert model.detect(rgba, ["circle", "star", "person"]).to_dict() == plain.to_dict()
    grey = tmp_path / "grey.png"
    rgb.convert("L").save(grey)
    assert _detect(tiny_bundle, grey).exit_code == 0
    # Stored lying down, with the note that says so: shown upright, and detected upright.
    turned = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
    assert model.detect(turned, ["circle", "star", "person"]).to_dict() == plain.to_dict()


def test_classes(tiny_bundle: Path, photo: Path) -> None:
    _refused(_run("run", tiny_bundle, "--image", photo, "--task", "detect"), "--classes", code=2)
    many = ",".join(f"thing{i}" for i in range(257))
    _refused(_detect(tiny_bundle, photo, many), "256", "257")
    _refused(_detect(tiny_bundle, photo, "circle,,star"))
    typed = _detect(tiny_bundle, photo, "<image>,[DET],circle")
    assert typed.exit_code == 0, typed.output
    assert json.loads(typed.stdout)["classes"] == ["<image>", "[DET]", "circle"]


def test_a_prompt_longer_than_the_context(tiny_bundle: Path, photo: Path) -> None:
    question = "what is this? " * 800
    result = _run("run", tiny_bundle, "--image", photo, "--task", "vqa", "--question", question)
    _refused(result, "1024")


def test_a_bundle_with_one_changed_byte(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, copy)
    victim = next(path for path in sorted(copy.rglob("*.weights")))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    _refused(_detect(copy, photo), victim.name)
    _refused(_run("verify", copy), victim.name)


def _changed_checkpoint(
    source: Path, target: Path, name: str, shape: tuple[int, ...] | None
) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    kept = tensors.pop(name)
    if shape is not None:
        tensors[name] = kept.new_zeros(shape)
    save_file(tensors, target / "model.safetensors")


def test_a_checkpoint_with_a_missing_or_mis_shaped_key(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    name = "gdino.model.enc_output.weight"
    _changed_checkpoint(tiny_checkpoint, tmp_path / "a", name, None)
    _refused(_run("compile", tmp_path / "a", "-o", tmp_path / "out"), name, "missing")
    _changed_checkpoint(tiny_checkpoint, tmp_path / "b", name, (3, 5))
    _refused(_run("compile", tmp_path / "b", "-o", tmp_path / "out"), name, "[3, 5]")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_compile_leaves_no_bundle(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    code = "import sys; from visionllm_edge.runtime.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "compile", str(tiny_checkpoint), "-o", str(out)]
    for stop in (signal.SIGINT, signal.SIGKILL):
        process = subprocess.Popen(
            [*command, "--no-cache", "--jobs", "1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
            # A test run in the background of a shell ignores the interrupt, and so would the child.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert process.stderr is not None
        process.stderr.readline()  # the first progress line: work has begun
        os.killpg(process.pid, stop)
        try:
            _, errors = process.communicate(timeout=120)
        finally:
            process.kill()
            process.wait()
        assert process.returncode != 0
        if stop == signal.SIGINT:
            assert process.returncode == 1
            assert "Interrupted" in errors and "Traceback" not in errors
        with pytest.raises(BundleError):
            VisionLLM.load(out)


def test_a_compile_never_replaces_something_that_is_no_bundle(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    precious = tmp_path / "notes" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("years of work")
    _refused(_run("compile", tiny_checkpoint, "-o", precious.parent), "notes")
    assert precious.read_text() == "years of work"
