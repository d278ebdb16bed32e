"""Gauges inside of blocks: one weight becomes smaller, and another thing makes up for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from rescaling.architectures import config_of, found_in, gauge_of
from rescaling.discovery.patterns import INTERIORS, LAYER, pattern

from safe_dtype.facts import Move, Part, Rows
from safe_dtype.rescaling.discovery.discover import discover
from safe_dtype.rescaling.discovery.twin import make_twin


@pytest.mark.parametrize(("name", "called"), [(name, called) for name, ones in INTERIORS.items() for called in ones])
def test_inside_of_blocks(name: str, called: str) -> None:
    """One weight becomes smaller with its bias, in every layer, and another thing makes up for it."""
    gauge = gauge_of(name, called)
    expected = {f"{LAYER}.{key}": power for key, power in INTERIORS[name][called].items()}
    assert pattern(gauge) == expected
    layers = {move.target.split(".")[2] for move in gauge.moves}
    assert len(gauge.moves) == len(expected) * len(layers)


def test_idle_bias() -> None:
    """A bias of keys, which softmax forgets, goes with its weight: together they are what becomes smaller."""
    moves = pattern(gauge_of("opt", "self_attn.k_proj / self_attn.scaling"))
    assert moves["model.decoder.layers.*.self_attn.k_proj.bias"] == -1


@pytest.mark.parametrize(
    ("name", "weight", "rows", "partner"),
    [
        pytest.param("phi3", "self_attn.qkv_proj.weight", Rows(-2, 0.0, 0.5), "self_attn.scaling", id="queries"),
        pytest.param("phi3", "self_attn.qkv_proj.weight", Rows(-2, 0.75, 1.0), "self_attn.o_proj.weight", id="values"),
        pytest.param("phi3", "mlp.gate_up_proj.weight", Rows(-2, 0.5, 1.0), "mlp.down_proj.weight", id="up"),
        pytest.param("mixtral", "mlp.experts.gate_up_proj", Rows(-2, 0.5, 1.0), "mlp.experts.down_proj", id="experts"),
    ],
)
def test_part_of_a_weight(name: str, weight: str, rows: Rows, partner: str) -> None:
    """Of weights that are several in one, the rows of one of them are moved."""
    layer = "model.layers.0."
    expected = {Move(Part.WEIGHT, layer + weight, -1, rows)}
    expected.add(Move(Part.NUMBER if partner.endswith("scaling") else Part.WEIGHT, layer + partner, 1))
    in_first_layer = [
        {move for move in one.gauge.moves if move.target.startswith(layer)} for one in found_in(name).proved
    ]
    assert expected in in_first_layer


class Interleaved(torch.nn.Module):
    """An MLP that holds its gate in the even rows of a weight and the rest in the odd ones."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.gate_up_proj = torch.nn.Linear(config.hidden_size, 2 * config.intermediate_size)
        self.down_proj = torch.nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """Multiply what the odd rows give by what the even rows gate."""
        both = self.gate_up_proj(given)
        returned: torch.Tensor = self.down_proj(torch.nn.functional.silu(both[..., ::2]) * both[..., 1::2])
        return returned


class InterleavedModel(tf.LlamaForCausalLM):
    """A Llama with such MLPs."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = Interleaved(config)


def test_every_other_row() -> None:
    """Weights may also be several in one by taking turns, row by row, and so may their biases."""
    found = discover(make_twin(InterleavedModel, config_of("llama")))
    up = next(one.gauge for one in found.proved if "gate_up_proj" in one.gauge.name)
    mlp = "model.layers.0.mlp"
    assert {move for move in up.moves if move.target.startswith(f"{mlp}.")} == {
        Move(Part.WEIGHT, f"{mlp}.gate_up_proj.weight", -1, Rows(-2, 0.0, 1.0, 1, 2)),
        Move(Part.WEIGHT, f"{mlp}.gate_up_proj.bias", -1, Rows(-1, 0.0, 1.0, 1, 2)),
        Move(Part.WEIGHT, f"{mlp}.down_proj.weight", 1),
    }


def test_clamps() -> None:
    """No gauge goes through a clamp, though weights of ordinary size hardly reach it."""
    moved = {name for one in found_in("olmo-clipped").proved for name in pattern(one.gauge)}
    assert f"{LAYER}.mlp.up_proj.weight" in moved  # it has nothing to do with the clamp
    assert not moved & {f"{LAYER}.self_attn.{name}_proj.weight" for name in "qkv"}


def test_gated_experts_of_gpt_oss() -> None:
    """There is no gauge inside of experts that clamp, and add one to what they multiply by."""
    inside = [one.gauge for one in found_in("gpt_oss").proved if one.stack is None]
    assert inside
    assert not [move for gauge in inside for move in gauge.moves if "experts" in move.target]
