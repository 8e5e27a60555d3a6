"""A bundle runs where only the runtime is installed: no torch, no transformers, no onnx."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionllm_edge.runtime import shapes_world

REPOSITORY = Path(__file__).resolve().parents[1]
CLI = "from visionllm_edge.runtime.cli import main; main()"
ABSENT = ("torch", "transformers", "onnx", "onnxscript", "onnx_ir", "safetensors", "scipy")

pytestmark = pytest.mark.slow


def run(*command: str | Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command} exited {done.returncode}:\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def runtime_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with the project's runtime dependencies only."""
    folder = tmp_path_factory.mktemp("runtime_only")
    # Copied, because a build writes into its tree; without the checkpoint, which no runtime reads.
    tree = folder / "tree"
    skip = shutil.ignore_patterns("__pycache__", "checkpoint")
    for name in ("benchmarks", "export", "plugins", "runtime"):
        shutil.copytree(REPOSITORY / name, tree / name, ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, tree / name)
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "-c", REPOSITORY / "constraints.txt", tree)
    return python


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scene = shapes_world.make_scene(np.random.default_rng(99), min_items=3, max_items=3)
    path = tmp_path_factory.mktemp("picture") / "scene.png"
    Image.fromarray(scene.image).save(path)
    return path


def test_the_environment_lacks_the_exporter(runtime_python: Path) -> None:
    code = f"import importlib.util as u; print([m for m in {ABSENT!r} if u.find_spec(m)])"
    assert run(runtime_python, "-I", "-c", code).strip() == "[]"


@pytest.mark.parametrize(
    "options",
    [
        ("--task", "detect", "--classes", ",".join(shapes_world.SHAPES)),
        ("--task", "segment", "--classes", "circle,person"),
        ("--task", "caption"),
        ("--task", "vqa", "--question", "How many circles are there?"),
    ],
    ids=lambda options: str(options[1]),
)
def test_every_task_gives_the_same_answer_there(
    options: tuple[str, ...], runtime_python: Path, tiny_bundle: Path, picture: Path
) -> None:
    command: tuple[str | Path, ...] = (
        "-I",
        "-c",
        CLI,
        "run",
        tiny_bundle,
        "--image",
        picture,
        *options,
        "--json",
    )
    there = json.loads(run(runtime_python, *command))
    here = json.loads(run(sys.executable, *command))
    assert there.get("text") == here.get("text")
    assert len(there.get("detections", [])) == len(here.get("detections", []))
    for one, other in zip(there.get("detections", []), here.get("detections", []), strict=True):
        assert one["label"] == other["label"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
        assert one["box_xyxy"] == pytest.approx(other["box_xyxy"], abs=1e-2)
    assert here.get("text") or here.get("detections")


def test_a_missing_extra_names_its_install_line(
    runtime_python: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    script = runtime_python.with_name("visionllm-edge")
    done = subprocess.run(
        [str(script), "compile", str(tiny_checkpoint), "-o", str(tmp_path / "bundle")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "pip install 'visionllm-edge[export]'" in done.stderr
    assert "Traceback" not in done.stderr
