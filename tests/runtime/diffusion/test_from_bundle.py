"""The image makers of a bundle: both, one or none, and a table of the wrong shape."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.runtime.diffusion.toy_chain import TOKENS, WIDTH, FunctionStages, diffusion_spec
from visionllm_edge.runtime.diffusion.from_bundle import image_maker
from visionllm_edge.runtime.diffusion.image_maker import ImageOptions
from visionllm_edge.runtime.errors import BundleError, InputError, MemoryLimitError
from visionllm_edge.runtime.manifest import InputLimits, StageSpec, Variant
from visionllm_edge.runtime.ports import Port


def bundle(tables: dict[str, Any], **specs: Any) -> Any:
    stages = specs.pop("stages", {})
    model = SimpleNamespace(**{"generation": None, "editing": None, **specs})
    return SimpleNamespace(
        root=Path("toy"),
        manifest=SimpleNamespace(model=model, stages=stages),
        array=tables.__getitem__,
    )


def built_for(name: str, low: tuple[int, ...], high: tuple[int, ...]) -> StageSpec:
    """A stage whose engine takes one input in these shapes."""
    port = Port(name, "float32", ("b", 4, "h", "w"))
    return StageSpec((port,), (), (Variant(None, "x"),), limits={name: InputLimits(low, high)})


SPEC = diffusion_spec("pndm", edits=False)


def test_makers() -> None:
    table = np.ones((TOKENS, WIDTH), np.float16)
    opened = bundle({SPEC.empty_prompt: table}, generation=SPEC)
    maker = image_maker(opened, FunctionStages({}), "generate")
    assert maker is not None and maker.spec is SPEC and not maker.edits
    assert image_maker(opened, FunctionStages({}), "edit") is None
    both = bundle({SPEC.empty_prompt: table}, generation=SPEC, editing=SPEC)
    editor = image_maker(both, FunctionStages({}), "edit")
    assert editor is not None and editor.edits


def test_a_plan_is_admitted_after_its_options_were_checked() -> None:
    asked: list[str] = []

    def admit() -> None:
        asked.append("room?")
        raise MemoryLimitError("no room")

    opened = bundle({SPEC.empty_prompt: np.ones((TOKENS, WIDTH), np.float16)}, generation=SPEC)
    maker = image_maker(opened, FunctionStages({}), "generate", admit)
    assert maker is not None
    with pytest.raises(InputError, match="steps"):
        maker.plan(ImageOptions(steps=0))
    assert asked == []
    with pytest.raises(MemoryLimitError, match="no room"):
        maker.plan(ImageOptions())
    assert asked == ["room?"]


def test_sizes_that_the_engines_were_not_built_for_are_refused() -> None:
    unet = built_for("latents", (1, 4, 3, 4), (3, 4, 24, 20))
    encoder = built_for("pixels", (1, 3, 16, 16), (1, 3, 90, 96))
    opened = bundle(
        {SPEC.empty_prompt: np.ones((TOKENS, WIDTH), np.float16)},
        generation=SPEC,
        editing=diffusion_spec("pndm", edits=True),
        stages={"gen_unet": unet, "edit_unet": unet, "edit_vae_encoder": encoder},
    )
    # Nothing is loaded, so nothing can run: there are no stages.
    maker = image_maker(opened, FunctionStages({}), "generate")
    editor = image_maker(opened, FunctionStages({}), "edit")
    assert maker is not None and editor is not None
    for size in ((16, 16), (96, 80)):
        assert maker.plan(ImageOptions(size=size)).size == size
    allowed = r"multiples of 8 pixels from \(16, 16\) to \(96, 80\), got"
    for size in ((8, 16), (16, 8), (104, 80), (96, 88)):
        with pytest.raises(InputError, match=allowed):
            maker.plan(ImageOptions(size=size))
    # Editing has a third stage, whose largest height is no multiple.
    with pytest.raises(InputError, match=r"to \(88, 80\), got \(96, 80\)"):
        editor.plan(ImageOptions(size=(96, 80)), (50, 50))
    assert editor.plan(ImageOptions(), (50, 150)).size == (24, 80)


def test_limits_that_are_alike_for_both_sides_are_told_once() -> None:
    unet = built_for("latents", (1, 4, 4, 4), (3, 4, 24, 24))
    opened = bundle(
        {SPEC.empty_prompt: np.ones((TOKENS, WIDTH), np.float16)},
        generation=SPEC,
        stages={"gen_unet": unet},
    )
    maker = image_maker(opened, FunctionStages({}), "generate")
    assert maker is not None
    with pytest.raises(InputError, match="pixels from 16 to 96, got"):
        maker.plan(ImageOptions(size=(104, 96)))


def test_refuses_a_table_of_another_shape() -> None:
    opened = bundle({SPEC.empty_prompt: np.ones((TOKENS, 2), np.float32)}, editing=SPEC)
    with pytest.raises(BundleError, match=r"expected shape \[5, 16\], got \[5, 2\]"):
        image_maker(opened, FunctionStages({}), "edit")
