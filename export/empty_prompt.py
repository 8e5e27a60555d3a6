"""The condition of no prompt at all, which guidance moves away from: a constant of the checkpoint.

It is what the branch's CLIP text tower makes of the empty string. The tower runs once, when the
checkpoint is compiled; a bundle holds the result as a table, and no text tower.

CLIP's vocabulary ends with its start and its end token, and Stable Diffusion's tokenizer pads with
the latter, so no tokenizer is needed: the start token, then end tokens to the condition's length.

Source: VisionLLM v2 (arXiv 2406.08394), section 3.3; diffusers, `pipeline_stable_diffusion.py`
(`encode_prompt`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from visionllm_edge.runtime.errors import ExportError

if TYPE_CHECKING:
    from torch import Tensor

    from visionllm_edge.export.components.diffusion import DiffusionBranch, TextTower
    from visionllm_edge.export.diffusion_sizes import DiffusionConfig
    from visionllm_edge.runtime.ports import Array

__all__ = ["empty_prompt", "empty_prompt_ids", "empty_prompt_table"]


def empty_prompt_ids(config: DiffusionConfig) -> Tensor:
    """Token ids of the empty prompt, int64 [1,Q]."""
    start, end = config.text_encoder.vocab_size - 2, config.text_encoder.vocab_size - 1
    ids = torch.full((1, config.adapter.num_queries), end, dtype=torch.int64)
    ids[:, 0] = start
    return ids


def empty_prompt(branch: DiffusionBranch, config: DiffusionConfig) -> Tensor:
    """The embedding of the empty prompt, [1,Q,d] in the text tower's type."""
    tower: TextTower = branch.sd_text_encoder
    with torch.no_grad():
        return cast("Tensor", tower(empty_prompt_ids(config)))


def empty_prompt_table(branch: DiffusionBranch, config: DiffusionConfig, *, name: str) -> Array:
    """The embedding as a bundle keeps it, float32 [Q,d].

    Args:
        branch: with the checkpoint's weights; only its text tower is touched.
        config: of the branch.
        name: of the branch, for the error.

    Raises:
        ExportError: numbers that are not finite.
    """
    table = empty_prompt(branch, config)[0].float().numpy()
    if not np.isfinite(table).all():
        raise ExportError(
            f"{name}.sd_text_encoder: the embedding of the empty prompt expected finite numbers, "
            "got some that are not. The text encoder's weights are damaged: fetch them again."
        )
    return table
