"""The forms of a vision stage run, on a small model, and give what torch gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tests.export.small_checkpoint import small_config
from visionllm_edge.benchmarks.peers.vision import difference
from visionllm_edge.benchmarks.peers.vision_contestants import CONTESTANTS, TOLERANCE
from visionllm_edge.benchmarks.peers.vision_stage import prepare_stage
from visionllm_edge.export.build_stage import ModelPair
from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.config import config_from_dict
from visionllm_edge.export.stages import STAGES as TABLE

# Of two sides: no level of the picture is square then.
BUCKET = (96, 160)


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    torch.manual_seed(0)
    config = small_config(600)
    config["visionllm_edge"] |= {"det_longest_edge": 160, "det_buckets": [list(BUCKET)]}
    return ModelPair(VisionLLM(config_from_dict(config, name="small")).eval())


@pytest.mark.parametrize("name", ["det_encoder", "det_decoder", "det_masks"])
def test_the_plain_form_equals_the_lowered_one(pair: ModelPair, name: str, tmp_path: Path) -> None:
    (stage,) = [entry for entry in TABLE if entry.name == name]
    prepared = prepare_stage(pair, stage, tmp_path, BUCKET if stage.bucketed else None)
    plain = onnx.load(prepared.plain, load_external_data=False)
    assert not plain.functions
    assert {node.domain for node in plain.graph.node} <= {"", "ai.onnx"}
    answers = {
        form: {
            name: np.array(v, np.float64) for name, v in CONTESTANTS[form][1](prepared, 1)().items()
        }
        for form in ("ours", "ONNX Runtime, plain graph")
    }
    for port, expected in prepared.truth.items():
        truth = expected.astype(np.float64)
        assert np.ptp(truth) > 0
        for outputs in answers.values():
            np.testing.assert_allclose(outputs[port], truth, rtol=1e-3, atol=1e-4)
    precision, make = CONTESTANTS["ours int8"]
    errors = [difference(make(prepared, 1)()[port], v) for port, v in prepared.truth.items()]
    assert 1e-3 < max(errors) < TOLERANCE[precision]
