"""The residual gauge of Llama's family, written down by hand: the tests of the rest do not rest on its discovery."""

from __future__ import annotations

from torch import nn

from safe_dtype.facts import Gauge, Move, Part


def residual(model: nn.Module) -> Gauge:
    """Return the gauge that makes the residual stream of a Llama, Qwen2 or Qwen3 smaller."""
    moves = [Move(Part.INPUT, "model.layers.0", -1), Move(Part.NUMBER, "model.norm.variance_epsilon", -2)]
    for name, _ in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight", "o_proj.bias", "down_proj.bias")):
            moves.append(Move(Part.WEIGHT, name, -1))
        if name.endswith("layernorm.weight"):
            moves.append(Move(Part.NUMBER, name.replace("weight", "variance_epsilon"), -2))
    return Gauge("residual", tuple(moves))


def scores(model: nn.Module) -> Gauge:
    """Return the gauge that makes queries smaller, and what their products with keys are multiplied by larger."""
    moves = []
    for name, _ in model.named_parameters():
        if ".q_proj." in name:
            moves.append(Move(Part.WEIGHT, name, -1))
        if name.endswith("q_proj.weight"):
            moves.append(Move(Part.NUMBER, name.replace("q_proj.weight", "scaling"), 1))
    return Gauge("scores", tuple(moves))


def product(model: nn.Module, *, of: float = 0.5) -> Gauge:
    """Return the gauge that makes the second half of a fused gate and up projection smaller, and down larger."""
    from safe_dtype.facts import Rows

    moves = []
    for name, _ in model.named_parameters():
        if name.endswith("gate_up_proj.weight"):
            moves.append(Move(Part.WEIGHT, name, -1, Rows(-2, of, 1.0)))
            moves.append(Move(Part.WEIGHT, name.replace("gate_up_proj", "down_proj"), 1))
    return Gauge("mlp", tuple(moves))
