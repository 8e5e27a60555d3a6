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


def bundle(tables: dict[str, Any], **specs: Any) -> Any:
    model = SimpleNamespace(**{"generation": None, "editing": None, **specs})
    return SimpleNamespace(
        root=Path("toy"), manifest=SimpleNamespace(model=model), array=tables.__getitem__
    )


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


def test_refuses_a_table_of_another_shape() -> None:
    opened = bundle({SPEC.empty_prompt: np.ones((TOKENS, 2), np.float32)}, editing=SPEC)
    with pytest.raises(BundleError, match=r"expected shape \[5, 16\], got \[5, 2\]"):
        image_maker(opened, FunctionStages({}), "edit")
