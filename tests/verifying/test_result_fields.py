"""Which tensors of an output are its results."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import DynamicCache
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrObjectDetectionOutput
from transformers.models.omdet_turbo.modeling_omdet_turbo import OmDetTurboObjectDetectionOutput

from safe_dtype.verifying.result_fields import Role, is_hidden_state, is_looked_at, results_of, role_of

ONE = torch.ones(1, 2)
LAYERS = (ONE, ONE)


@dataclass(slots=True)
class Heads:
    """An output class of a library's own."""

    depth: torch.Tensor
    names: tuple[str, ...] = ("sky",)


Pair = namedtuple("Pair", ["policy", "value"])


@pytest.mark.parametrize(
    ("output", "names"),
    [
        pytest.param(ONE, ["output"], id="a-tensor"),
        pytest.param((ONE, None, ONE), ["0", "2"], id="a-tuple"),
        pytest.param((ONE, (ONE, DynamicCache())), ["0", "1.0"], id="nested-tuples"),
        pytest.param(Pair(ONE, ONE), ["policy", "value"], id="named-tuple"),
        pytest.param({"heads": {"boxes": ONE, "ids": torch.ones(1, dtype=torch.long)}}, ["heads.boxes"], id="dicts"),
        pytest.param(Heads(ONE), ["depth"], id="dataclass"),
        pytest.param(SimpleNamespace(sample=ONE, _secret=ONE), ["sample"], id="object"),
        pytest.param(
            {"latent_dist": torch.distributions.Normal(ONE, ONE)},
            ["latent_dist.loc", "latent_dist.scale"],
            id="distribution",
        ),
        pytest.param({"audio": ONE.to(torch.complex64)}, ["audio"], id="complex"),
        pytest.param({"logits": ONE, "hidden_states": LAYERS, "attentions": LAYERS}, ["logits"], id="one-a-layer"),
        pytest.param({"hidden_states": ONE}, ["hidden_states"], id="one-of-all"),
        pytest.param({"loss": ONE, "aux_loss": ONE, "router_logits": LAYERS, "mems": LAYERS}, [], id="aside"),
        pytest.param({"encoder_last_hidden_state": ONE}, ["encoder_last_hidden_state"], id="a-part-and-nothing-else"),
        pytest.param(
            Seq2SeqLMOutput(logits=ONE, encoder_last_hidden_state=ONE, past_key_values=DynamicCache()),
            ["logits"],
            id="seq2seq",
        ),
        pytest.param(
            DeformableDetrObjectDetectionOutput(
                logits=ONE, pred_boxes=ONE, last_hidden_state=ONE, init_reference_points=ONE,
                intermediate_hidden_states=ONE, enc_outputs_class=ONE, enc_outputs_coord_logits=ONE,
            ),
            ["logits", "pred_boxes", "last_hidden_state"],
            id="detector",
        ),
        pytest.param(
            OmDetTurboObjectDetectionOutput(decoder_coord_logits=ONE, decoder_class_logits=ONE, encoder_coord_logits=ONE),
            ["decoder_coord_logits", "decoder_class_logits"],
            id="results-of-a-decoder",
        ),
        pytest.param("text", [], id="no-tensors"),
    ],
)  # fmt: skip
def test_results_of(output: Any, names: list[str]) -> None:
    """What a caller uses, by dotted name; what is returned beside it is left out."""
    assert [name for name, _ in results_of(output)] == names


def test_a_circle_ends() -> None:
    """Containers in one another end at a depth, whatever they hold."""
    circle: dict[str, Any] = {"boxes": ONE}
    circle["again"] = circle
    assert results_of(circle)[0][0] == "boxes"


def test_role_of() -> None:
    """A loss is told by the word, not by its letters; numbers name nothing."""
    assert role_of("mc_loss") is Role.ASIDE
    assert role_of("glossary") is role_of(3) is role_of("state_preds") is Role.RESULT
    assert role_of("initial_token_logits") is Role.RESULT


@pytest.mark.parametrize(
    ("name", "is_state"),
    [
        ("vision_outputs.last_hidden_state", True),
        ("text_model_output.pooler_output", True),
        ("vision_outputs.0", True),
        ("pooler_output", False),
        ("detection_outputs.pred_boxes", False),
        ("language_model_outputs.logits", False),
        ("depth_output.predicted_depth", False),
    ],
)
def test_is_hidden_state(name: str, *, is_state: bool) -> None:
    """What a part returns in an output of its own is a state, unless it is an answer."""
    assert is_hidden_state(name) == is_state


@pytest.mark.parametrize(
    ("tensor", "is_read"),
    [
        pytest.param(ONE, True, id="numbers"),
        pytest.param(torch.nn.Parameter(ONE), True, id="a-parameter"),
        pytest.param(ONE.to("meta"), False, id="meta"),
        pytest.param(ONE.to_sparse(), False, id="sparse"),
        pytest.param(ONE.to(torch.float8_e4m3fn), False, id="float8"),
        pytest.param(torch.empty(0), False, id="empty"),
    ],
)
def test_is_looked_at(tensor: torch.Tensor, *, is_read: bool) -> None:
    """Only where there are numbers that a reduction can read."""
    assert is_looked_at(tensor) == is_read
