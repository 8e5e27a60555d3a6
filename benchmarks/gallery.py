"""A picture for every task of a bundle, asked about scenes that no training has seen.

Each entry is saved as ``TASK.png``, and all of them side by side as ``gallery.png``. What is true
of the scene is told beside what the bundle said, so that a wrong answer is seen as one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from visionllm_edge.runtime import shapes_world
from visionllm_edge.runtime.manifest import ModelSpec
from visionllm_edge.runtime.model import VisionLLM
from visionllm_edge.runtime.regions import Box, Point
from visionllm_edge.runtime.shapes_world import Item, Scene
from visionllm_edge.runtime.shapes_world.edits import draw_sketch, make_edit, make_sketch

__all__ = ["Entry", "make_gallery", "tasks_of"]

# "gall" in ASCII, so that no training draws from the same stream.
_STREAM = 0x67616C6C
_SIDE_PX = 128
_TILE_PX = 320
_HEAD_PX = 40
_COLUMNS = 4
_INK, _PAPER, _MARK = (20, 20, 20), (250, 250, 250), (255, 0, 160)
_MARK_PX = 2


@dataclass(frozen=True)
class Entry:
    """One task shown.

    Attributes:
        task: its name.
        asked: what the bundle was asked.
        said: its answer in words.
        truth: what is right.
        picture: the answer drawn.
    """

    task: str
    asked: str
    said: str
    truth: str
    picture: Image.Image


def tasks_of(model: ModelSpec) -> list[str]:
    """The tasks of the gallery that a bundle can do, in the order in which they are shown."""
    has = {
        "detect": model.detector is not None,
        "segment": model.detector is not None,
        "ground": model.detector is not None,
        "grounded-caption": model.detector is not None,
        "semantic": model.detector is not None,
        "vqa": True,
        "region": model.regions,
        "interactive": model.regions and model.detector is not None,
        "pose": model.pose is not None,
        "generate": model.generation is not None,
        "edit": model.editing is not None,
    }
    return [task for task in _SHOW if has[task]]


def make_gallery(
    model: VisionLLM, tasks: Sequence[str], folder: Path, *, seed: int
) -> Iterator[Entry]:
    """Show tasks one by one; the sheet with all of them is written at the end.

    Args:
        model: a loaded bundle.
        tasks: of :func:`tasks_of`.
        folder: where the pictures go; made if need be.
        seed: which scenes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tiles = []
    for number, task in enumerate(tasks):
        entry = _SHOW[task](model, np.random.default_rng([_STREAM, seed, number]))
        entry.picture.save(folder / f"{task}.png")
        tiles.append(_tile(entry))
        yield entry
    if tiles:
        _sheet(tiles).save(folder / "gallery.png")


def _detect(model: VisionLLM, rng: np.random.Generator) -> Entry:
    scene = _scene(rng)
    result = model.detect(scene.image, shapes_world.SHAPES)
    return _entry("detect", "every shape", result.text, scene, result.draw(scene.image))


def _segment(model: VisionLLM, rng: np.random.Generator) -> Entry:
    scene = _scene(rng)
    names = shapes_world.class_names(scene, rng, 4, kind="phrase")
    result = model.segment(scene.image, names)
    return _entry("segment", ", ".join(names), result.text, scene, result.draw(scene.image))


def _ground(model: VisionLLM, rng: np.random.Generator) -> Entry:
    scene = _scene(rng)
    while not shapes_world.expressions(scene):
        scene = _scene(rng)
    name, _ = shapes_world.expressions(scene)[0]
    result = model.ground(scene.image, name, masks=True)
    return _entry("ground", name, result.text, scene, result.draw(scene.image))


def _grounded_caption(model: VisionLLM, rng: np.random.Generator) -> Entry:
    scene = _scene(rng)
    result = model.grounded_caption(scene.image)
    return _entry("grounded-caption", "describe", result.text, scene, result.draw(scene.image))


def _semantic(model: VisionLLM, rng: np.random.Generator) -> Entry:
    scene = _scene(rng)
    result = model.semantic(scene.image, shapes_world.SHAPES)
    return _entry("semantic", "every pixel", result.text, scene, result.draw(scene.image))


def _vqa(model: VisionLLM, rng: np.random.Generator) -> Entry:
    scene = _scene(rng)
    question = shapes_world.questions(scene, rng, 1)[0]
    result = model.vqa(scene.image, question.text)
    picture = result.draw(scene.image)
    return Entry("vqa", question.text, result.text, question.answer, picture)


def _region(model: VisionLLM, rng: np.random.Generator) -> Entry:
    scene = _scene(rng)
    item = _some(scene.items, rng)
    result = model.describe(scene.image, Box(*item.box_xyxy))
    picture = result.draw(_marked(scene.image, item.box_xyxy))
    return Entry(
        "region", "what is in the box?", result.text, shapes_world.indefinite(item.name), picture
    )


def _interactive(model: VisionLLM, rng: np.random.Generator) -> Entry:
    scene = _scene(rng)
    item = _some(scene.items, rng)
    rows, columns = np.nonzero(item.mask)
    middle = len(rows) // 2
    point = Point(float(columns[middle]) + 0.5, float(rows[middle]) + 0.5)
    result = model.segment(scene.image, regions=[point])
    around = (point.x - 1, point.y - 1, point.x + 1, point.y + 1)
    picture = result.draw(_marked(scene.image, around))
    return Entry("interactive", "segment what the point is on", result.text, item.name, picture)


def _pose(model: VisionLLM, rng: np.random.Generator) -> Entry:
    scene = _scene(rng)
    while not any(item.keypoints is not None for item in scene.items):
        scene = _scene(rng)
    result = model.pose(scene.image, ["person"])
    persons = sum(item.keypoints is not None for item in scene.items)
    asked = "the 17 keypoints of every person"
    said = f"{len(result.poses)} found"
    return Entry("pose", asked, said, f"{persons} there", result.draw(scene.image))


def _generate(model: VisionLLM, rng: np.random.Generator) -> Entry:
    sketch = make_sketch(rng, min_figures=2, kept=True)
    made = model.generate(sketch.caption, seed=0)
    drawn = _enlarged(made.image, _TILE_PX)
    return Entry("generate", sketch.caption, f"seed {made.seed}", sketch.caption, drawn)


def _edit(model: VisionLLM, rng: np.random.Generator) -> Entry:
    edit = make_edit(rng, kind="recolor", kept=True)
    before = draw_sketch(edit.before).image
    made = model.edit(before, edit.instruction, seed=0)
    pair = Image.new("RGB", (2 * _TILE_PX + 8, _TILE_PX), _PAPER)
    pair.paste(_enlarged(before, _TILE_PX), (0, 0))
    pair.paste(_enlarged(made.image, _TILE_PX), (_TILE_PX + 8, 0))
    return Entry("edit", edit.instruction, f"seed {made.seed}", edit.after.caption, pair)


_SHOW: dict[str, Callable[[VisionLLM, np.random.Generator], Entry]] = {
    "detect": _detect,
    "segment": _segment,
    "ground": _ground,
    "grounded-caption": _grounded_caption,
    "semantic": _semantic,
    "vqa": _vqa,
    "region": _region,
    "interactive": _interactive,
    "pose": _pose,
    "generate": _generate,
    "edit": _edit,
}


def _scene(rng: np.random.Generator) -> Scene:
    return shapes_world.make_scene(rng, width=_SIDE_PX, height=_SIDE_PX, min_items=3, max_items=4)


def _some(items: Sequence[Item], rng: np.random.Generator) -> Item:
    return items[int(rng.integers(len(items)))]


def _entry(task: str, asked: str, said: str, scene: Scene, picture: Image.Image) -> Entry:
    return Entry(task, asked, said, shapes_world.caption(scene), picture)


def _marked(image: NDArray[np.uint8], box: tuple[float, float, float, float]) -> NDArray[np.uint8]:
    """The picture with a frame around a place."""
    marked = Image.fromarray(image)
    left, top, right, bottom = box
    outer = (left - _MARK_PX, top - _MARK_PX, right + _MARK_PX - 1, bottom + _MARK_PX - 1)
    ImageDraw.Draw(marked).rectangle(outer, outline=_MARK, width=_MARK_PX)
    return np.asarray(marked)


def _enlarged(image: NDArray[np.uint8], side: int) -> Image.Image:
    return Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)


def _tile(entry: Entry) -> Image.Image:
    """The picture at the tile's width below the task's name and what was asked."""
    width, height = entry.picture.size
    picture = entry.picture.convert("RGB").resize(
        (_TILE_PX, round(height * _TILE_PX / width)), Image.Resampling.LANCZOS
    )
    tile = Image.new("RGB", (_TILE_PX, picture.height + _HEAD_PX), _PAPER)
    tile.paste(picture, (0, _HEAD_PX))
    pen = ImageDraw.Draw(tile)
    pen.text((4, 2), entry.task, fill=_INK, font=ImageFont.load_default(16))
    pen.text((4, 22), entry.asked, fill=_INK, font=ImageFont.load_default(13))
    return tile


def _sheet(tiles: Sequence[Image.Image]) -> Image.Image:
    """Tiles in rows, each as high as its highest tile."""
    rows = [tiles[i : i + _COLUMNS] for i in range(0, len(tiles), _COLUMNS)]
    gap = 8
    width = _COLUMNS * (_TILE_PX + gap) + gap
    heights = [max(tile.height for tile in row) for row in rows]
    sheet = Image.new("RGB", (width, sum(heights) + gap * (len(rows) + 1)), _PAPER)
    top = gap
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            sheet.paste(tile, (gap + column * (_TILE_PX + gap), top))
        top += height + gap
    return sheet
