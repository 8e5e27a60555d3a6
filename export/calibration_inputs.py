"""What the stages of a bundle read when it looks at pictures: the inputs of a calibration.

Preprocessing and chaining are the runtime's own. The two encoders read nothing but the picture;
for the stages behind them the whole pipeline runs, and what it hands to a stage is written down.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.runtime.backends import KVCache, StageOptions, StageRunner
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.errors import ConfigError, InputError
from visionllm_edge.runtime.images import load_image
from visionllm_edge.runtime.model import VisionLLM
from visionllm_edge.runtime.pipelines.loading import BundleStages, load_pipeline
from visionllm_edge.runtime.ports import Array, StagePorts, Tensor
from visionllm_edge.runtime.preprocess import clip_tiles, detector_input
from visionllm_edge.runtime.shapes_world import SHAPES, make_scene

__all__ = ["CALIBRATED", "CLASSES_FILE", "MIN_PICTURES", "Pictures", "StageInputs", "load_pictures"]

MIN_PICTURES = 16
CLASSES_FILE = "classes.txt"
_MAX_PICTURES = 64
_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})
_SEED = 20_261_123
_TOP_K = 20
_BEHIND = ("det_encoder", "det_decoder", "det_masks")

CALIBRATED = frozenset({"vision_encoder", "det_backbone", *_BEHIND})
"""Stages whose inputs are written down; the others do not round activations to eight bits."""

Rgb = NDArray[np.uint8]
Bucket = tuple[int, int]
Run = dict[str, Array]


class Pictures:
    """Pictures and the names of what to look for in them.

    Attributes:
        origin: where they are from, for messages and reports.
        classes: names of objects.
    """

    def __init__(self, origin: str, classes: Sequence[str], paths: Sequence[Path] = ()) -> None:
        """Take files, or none for scenes of the shapes world."""
        self.origin = origin
        self.classes = tuple(classes)
        self._paths = tuple(paths)

    def __len__(self) -> int:
        """How many."""
        return len(self._paths) or MIN_PICTURES

    def sized(self, bucket: Bucket | None) -> Iterator[Rgb]:
        """Every picture; scenes are made in the shape of the bucket."""
        for path in self._paths:
            yield load_image(path)
        if not self._paths:
            height, width = bucket or (128, 128)
            share = min(1.0, 192 / max(height, width))
            for index in range(MIN_PICTURES):
                rng = np.random.default_rng([_SEED, index])
                sides = max(64, round(height * share)), max(64, round(width * share))
                yield make_scene(rng, width=sides[1], height=sides[0]).image


def load_pictures(folder: Path | None) -> Pictures:
    """The pictures of a folder, or of the shapes world.

    Args:
        folder: with at least `MIN_PICTURES` pictures, and a file `classes.txt` with a name per line
            where stages behind the language model are calibrated.

    Raises:
        ConfigError: not a folder, or too few pictures.
    """
    if folder is None:
        return Pictures("the shapes world", SHAPES)
    if not folder.is_dir():
        raise ConfigError(f"calibration: '{folder.name}' is no folder. Name one with pictures.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if len(paths) < MIN_PICTURES:
        raise ConfigError(
            f"calibration: folder '{folder.name}' expected at least {MIN_PICTURES} pictures "
            f"({', '.join(sorted(_SUFFIXES))}), got {len(paths)}. Add pictures like those that the "
            "model will see."
        )
    classes: list[str] = []
    if (folder / CLASSES_FILE).is_file():
        lines = (folder / CLASSES_FILE).read_text(encoding="utf-8").splitlines()
        classes = [line.strip() for line in lines if line.strip()]
    return Pictures(f"{min(len(paths), _MAX_PICTURES)} pictures of '{folder.name}'", classes,
                    paths[:_MAX_PICTURES])  # fmt: skip


class StageInputs:
    """Inputs of the stages of one bundle on some pictures.

    Args:
        bundle: compiled for the CPU.
        pictures: to look at.
    """

    def __init__(self, bundle: Bundle, pictures: Pictures) -> None:
        """Nothing runs yet."""
        self._bundle, self._pictures = bundle, pictures
        self._recorded: tuple[Bucket | None, dict[str, list[Run]]] | None = None

    def runs(self, stage: str, bucket: Bucket | None) -> list[Run]:
        """Inputs of one stage, a run per entry; at least one per picture.

        Raises:
            EdgeError: a picture cannot be read, or the pipeline cannot run here.
        """
        if stage == "vision_encoder":
            return list(_tiles(self._bundle, self._pictures))
        if stage == "det_backbone":
            return list(_pixels(self._bundle, bucket, self._pictures))
        if self._recorded is None or self._recorded[0] != bucket:
            # All of them at once: stages are asked for one after the other.
            self._recorded = bucket, _record(self._bundle, bucket, self._pictures)
        return self._recorded[1][stage]


def _tiles(bundle: Bundle, pictures: Pictures) -> Iterator[Run]:
    vision, clip = bundle.manifest.vision(), bundle.manifest.preprocessing().clip
    for rgb in pictures.sized(None):
        tiles = clip_tiles(
            rgb,
            image_size=vision.image_size,
            max_tiles=vision.max_tiles,
            mean=clip.mean,
            std=clip.std,
        )
        yield {"pixels": tiles}


def _pixels(bundle: Bundle, bucket: Bucket | None, pictures: Pictures) -> Iterator[Run]:
    manifest = bundle.manifest
    spec, constants = manifest.model.detector, manifest.preprocessing().detector
    assert spec is not None and constants is not None, "a bundle with this stage has both"
    for rgb in pictures.sized(bucket):
        prepared = detector_input(
            rgb,
            shortest=spec.shortest_edge,
            longest=spec.longest_edge,
            divisor=spec.divisor,
            buckets=() if bucket is None else (bucket,),
            mean=constants.mean,
            std=constants.std,
        )
        yield {"pixels": prepared.pixels}


def _record(bundle: Bundle, bucket: Bucket | None, pictures: Pictures) -> dict[str, list[Run]]:
    """Inputs of every stage behind the language model."""
    if not pictures.classes:
        raise InputError(
            f"calibration behind the language model: expected a file {CLASSES_FILE} beside the "
            "pictures with a name per line (what to look for), got none. Add it."
        )
    runs: dict[str, list[Run]] = {name: [] for name in _BEHIND}
    pipeline = load_pipeline(bundle, stages=_Recorder(BundleStages(bundle, StageOptions()), runs))
    detector = pipeline.detector
    if bucket is not None:
        # Every picture is fitted into this bucket, whatever its own would be.
        detector.spec = replace(detector.spec, buckets=(bucket,))
    model = VisionLLM(pipeline)
    for rgb in pictures.sized(bucket):
        model.detect(rgb, pictures.classes, threshold=0.0, top_k=_TOP_K, masks=True)
    return runs


class _Recorder:
    """Stages whose inputs are written down."""

    def __init__(self, stages: BundleStages, runs: dict[str, list[Run]]) -> None:
        self._stages, self._runs = stages, runs

    def get(self, name: str, bucket: Bucket | None = None) -> StageRunner:
        runner = self._stages.get(name, bucket)
        return _Recorded(runner, self._runs[name]) if name in self._runs else runner


class _Recorded:
    def __init__(self, runner: StageRunner, runs: list[Run]) -> None:
        self._runner, self._runs = runner, runs

    @property
    def ports(self) -> StagePorts:
        return self._runner.ports

    def _note(self, inputs: Mapping[str, Tensor]) -> None:
        self._runs.append({name: np.array(array) for name, array in inputs.items()})

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Array]:
        self._note(inputs)
        return self._runner.run(inputs)

    def run_kept(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self._note(inputs)
        return self._runner.run_kept(inputs)

    def new_cache(self, capacity: int) -> KVCache:
        return self._runner.new_cache(capacity)

    def run_with_cache(self, inputs: Mapping[str, Tensor], cache: KVCache) -> dict[str, Array]:
        return self._runner.run_with_cache(inputs, cache)
