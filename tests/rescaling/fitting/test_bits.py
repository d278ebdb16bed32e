"""How many bits, by which gauges, and what is left for islands: on models that overflow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from engineered import engineered, prompts
from rescaling.gauges_by_hand import product, residual, scores
from tiny_models import TINY
from torch import Tensor, nn

from safe_dtype.facts import Gauge, HalfRange, Move, Part, Rescale
from safe_dtype.models.blocks import block_names
from safe_dtype.rescaling import Fold, fit_to_half, gauges_for
from safe_dtype.rescaling.fitting.bits import AIM, LIMIT, bits_for, wide_weights
from safe_dtype.rescaling.fitting.peaks import record_peaks
from safe_dtype.rescaling.lost_bits import require_bits_kept

END = 65504


def fit(model: Any, family: str, gauges: Sequence[Gauge] = (), **given: Any) -> tuple[HalfRange, tuple[str, ...]]:
    """Return what it takes for a model of `family`."""
    return fit_to_half(model, prompts(family, count=2, tokens=24, seed=3), gauges, blocks=block_names(model), **given)


def made(family: str) -> Any:
    """Return a model of `family` in bfloat16."""
    return engineered(family).bfloat16()


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of all parameters."""
    return {name: one.detach().clone() for name, one in model.named_parameters()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    """Whether every parameter is what it was, bit for bit."""
    return all(torch.equal(one, before[name]) for name, one in model.named_parameters())


@pytest.mark.parametrize(
    ("peak", "bits"),
    [
        pytest.param(0.0, 0, id="nothing"),
        pytest.param(AIM, 0, id="just-in-range"),
        pytest.param(AIM * 1.001, 1, id="just-beyond"),
        pytest.param(AIM * 2, 1, id="twice"),
        pytest.param(4.5e5, 8, id="a-massive-activation"),
        pytest.param(AIM * 2**10, 10, id="as-far-as-is-free"),
        pytest.param(AIM * 2**12, 10, id="with-fewer-bits-to-spare"),
        pytest.param(LIMIT * 2**10, 10, id="with-two-bits-to-spare"),
        pytest.param(LIMIT * 2**10 * 1.001, 11, id="never-with-less"),
    ],
)
def test_bits_for(peak: float, bits: int) -> None:
    """Five bits of room where ten bits reach, two in any case."""
    assert bits_for(peak) == bits


def test_room_is_made() -> None:
    """After the fit hidden states lie below a 32nd of float16's end, by the bits that this takes and no more."""
    model = made("llama")
    found, doubtful = fit(model, "llama", [residual(model)])
    assert found.rescale is not None
    assert found.rescale.bits("residual") == bits_for(found.peak)
    assert AIM / 2 < max(one.rescaled for one in found.block_peaks) <= AIM
    assert found.left < LIMIT  # a product inside of the MLP is none of this gauge's
    assert (found.islands, doubtful, found.problem) == ((), (), "")
    peaks = {one.block: one for one in found.block_peaks}
    assert list(peaks) == list(block_names(model))
    factor = 2.0 ** bits_for(found.peak)
    assert all(one.plain == one.rescaled * factor for one in found.block_peaks)


def test_nothing_is_needed() -> None:
    """A model in range is left alone: gauges that could be used are not."""
    torch.manual_seed(0)
    model = TINY["qwen3"].make().eval().bfloat16()
    found, doubtful = fit_to_half(model, [TINY["qwen3"].inputs()], [residual(model)])
    assert (found.rescale, found.islands, doubtful, found.problem) == (None, (), (), "")
    assert 0 < found.peak == found.left < AIM


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_model_comes_back(dtype: torch.dtype) -> None:
    """Weights, numbers and hooks are bitwise what they were."""
    model = engineered("phi3_interior").to(dtype)
    before, eps, hooks = weights(model), model.model.norm.variance_epsilon, count_hooks(model)
    found, _ = fit(model, "phi3_interior", [residual(model), product(model)])
    assert found.rescale is not None
    assert unchanged(model, before)
    assert (model.model.norm.variance_epsilon, count_hooks(model)) == (eps, hooks)


def test_model_comes_back_from_an_error() -> None:
    """Also where the model fails while a gauge is folded in."""
    model, calls = made("llama"), []
    before, gauge = weights(model), residual(model)

    def fail_the_third_time(_module: nn.Module, _args: Any) -> None:
        calls.append(model.model.norm.variance_epsilon)
        if len(calls) == 3:
            raise MemoryError

    model.register_forward_pre_hook(fail_the_third_time)
    with pytest.raises(MemoryError):
        fit(model, "llama", [gauge])
    assert calls[2] < calls[0], "it was folded in"
    assert unchanged(model, before)
    assert model.model.norm.variance_epsilon == calls[0]


def count_hooks(model: nn.Module) -> int:
    """Return how many hooks there are."""
    return sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.modules())


def test_gauge_that_does_not_help() -> None:
    """A gauge of other numbers than those out of range is left out, and the next one is tried."""
    model = made("qwen2_scores")
    found, _ = fit(model, "qwen2_scores", [residual(model), scores(model)])
    assert found.rescale is not None
    assert [gauge.name for gauge, _ in found.rescale.shifts] == ["scores"]
    assert found.rescale.bits("scores") == bits_for(found.peak)


def test_gauge_that_does_not_apply() -> None:
    """A gauge that names what the model has not is left out, with those that follow still tried."""
    model = made("llama")
    before = weights(model)
    wrong = Gauge("wrong", (*residual(model).moves, Move(Part.WEIGHT, "model.norm.bias", -1)))
    found, _ = fit(model, "llama", [wrong, residual(model)])
    assert found.rescale is not None
    assert [gauge.name for gauge, _ in found.rescale.shifts] == ["residual"]
    assert unchanged(model, before)


def test_gauge_that_makes_a_weight_overflow() -> None:
    """Where the weight that makes up for it would leave float16, a gauge is not used; an island takes its place."""
    model = made("phi3_interior")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = 1e4
    found, _ = fit(model, "phi3_interior", [product(model)])
    assert found.rescale is None
    assert found.islands


def with_small_weights(bits: int) -> Any:
    """Return a model that computes the same with what its residual gauge moves down small already: by so many bits."""
    model = engineered("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.v_proj.weight.mul_(2.0**bits)
            layer.self_attn.o_proj.weight.mul_(2.0**-bits)
    return model.bfloat16()


@pytest.mark.parametrize(
    ("small", "bits"),
    [
        pytest.param(0, 8, id="all-the-room"),
        pytest.param(7, 7, id="with-a-bit-less-room"),
        pytest.param(9, 5, id="with-the-least-room"),
    ],
)
def test_weights_that_would_lose_too_much(small: int, bits: int) -> None:
    """A weight may lose no more than one of a recipe may: room is given up for it, down to two bits."""
    model = with_small_weights(small)
    found, _ = fit(model, "llama", [residual(model)])
    assert found.rescale is not None
    assert found.rescale.bits("residual") == bits
    require_bits_kept(model, found.rescale, ())
    assert found.left <= LIMIT


def test_weights_that_lose_too_much_in_any_case() -> None:
    """Where even two bits of room cost a weight too much the gauge is not used, and the reason names both."""
    model = with_small_weights(10)
    found, _ = fit(model, "llama", [residual(model)], problem="nobody found another")
    assert found.rescale is None
    assert "nobody found another; residual 2^-5 would help, but model.layers." in found.problem
    assert ".self_attn.o_proj.weight would lose 0.0" in found.problem


def test_gauge_that_makes_something_else_worse() -> None:
    """A gauge that only passes the size on is not used."""
    model = made("phi3_interior")
    moves = [move for move in product(model).moves if move.power < 0]
    moves += [Move(Part.WEIGHT, "model.layers.1.self_attn.qkv_proj.weight", 12)]
    found, _ = fit(model, "phi3_interior", [Gauge("elsewhere", tuple(moves))])
    assert found.rescale is None


def test_sandwich_norms_beyond_ten_bits_of_room() -> None:
    """A norm that returns what is out of range may be rescaled to two bits of room, as a linear layer may."""
    model = made("gemma2")
    with torch.no_grad():  # 4e6, and float16 ends at 6.6e4
        for layer in model.model.layers:
            gain = layer.post_feedforward_layernorm.weight
            gain[gain > 1e4] *= 8
    found, _ = fit(model, "gemma2", [one for one in gauges_for(model).gauges if one.name == "residual"])
    assert found.peak / 2**10 > AIM
    assert found.rescale is not None
    assert found.rescale.bits("residual") == 10
    assert found.left < LIMIT


@pytest.mark.parametrize(
    ("family", "islands"),
    [
        pytest.param("opt_interior", ("model.decoder.layers.1",), id="around-what-is-handed-from-one-to-the-next"),
        pytest.param("phi3_interior", ("model.layers.1.mlp",), id="around-a-product-between-modules"),
    ],
)
def test_islands(family: str, islands: tuple[str, ...]) -> None:
    """Without a gauge the smallest module that gives back what float16 holds is an island, and a doubtful one."""
    found, doubtful = fit(made(family), family)
    assert found.islands == doubtful == islands
    assert found.rescale is None
    assert found.left < LIMIT < found.peak


def test_islands_that_only_keep_room() -> None:
    """What float16 holds, with less than two bits to spare, gets an island nobody doubts."""
    model = made("opt_interior")
    with torch.no_grad():
        fc1, fc2 = model.model.decoder.layers[1].fc1, model.model.decoder.layers[1].fc2
        fc1.weight[3] *= 0.2
        fc2.weight[:, 3] *= 5
    found, doubtful = fit(model, "opt_interior")
    assert LIMIT < found.peak < END
    assert found.islands == ("model.decoder.layers.1",)
    assert doubtful == ()


def test_no_island_for_the_whole_model() -> None:
    """Where a hidden state stays out of range through all blocks there is no island, and the reason names a module."""
    found, doubtful = fit(made("llama"), "llama", problem="nobody found a gauge")
    assert found.problem == "activations reach 422,000 in model.layers.2 (nobody found a gauge)"
    assert (found.islands, doubtful) == ((), ())


def test_reason_names_what_is_in_the_way() -> None:
    """The reason is the module without an island, not the largest number of all."""
    model = made("phi3_interior")
    with torch.no_grad():
        model.lm_head.weight *= 2e3  # logits of 2e4
    found, _ = fit(model, "phi3_interior")
    assert found.peak > 1e5
    assert found.problem.endswith(" in lm_head")


def test_weight_beyond_float16() -> None:
    """A weight that float16 cannot hold is kept in an island, whatever its products are, and nobody doubts it."""
    model = made("llama")
    Fold(model).move_to(Rescale(((residual(model), 9),)))
    name = "model.layers.2.mlp.gate_proj"
    with torch.no_grad():
        model.get_submodule(name).weight[0, 0] = -7e4
        model.model.layers[2].post_attention_layernorm.weight[0] = 0
    assert list(wide_weights(model)) == [f"{name}.weight"]
    assert list(wide_weights(model, ["lm_head.weight"])) == []
    found, doubtful = fit(model, "llama")
    assert found.islands == (name,)
    assert doubtful == ()


def test_weight_beyond_float16_that_nothing_is_around() -> None:
    """The reason says so where the whole model would have to be the island."""
    model = made("llama")
    Fold(model).move_to(Rescale(((residual(model), 9),)))
    model.unused = nn.Parameter(torch.full((2,), 1e5, dtype=torch.bfloat16))
    found, _ = fit(model, "llama")
    assert found.problem == "LlamaForCausalLM has weights beyond float16"


@pytest.mark.parametrize("where", ["model.layers.2.mlp.down_proj", "model.layers.0.self_attn.q_proj"])
def test_nan(where: str) -> None:
    """A model that gives NaN in bfloat16 already is not fitted."""
    model = made("llama")
    with torch.no_grad():
        model.get_submodule(where).weight.fill_(torch.nan)
    found, _ = fit(model, "llama", [residual(model)])
    assert "NaN or infinity" in found.problem
    assert found.rescale is None


def test_islands_inside_islands() -> None:
    """An island that lies in another one is not named beside it."""
    model = made("opt_interior")
    with torch.no_grad():
        model.model.decoder.layers[1].self_attn.q_proj.weight[0, 0] = 7e4
        model.model.decoder.layers[1].self_attn_layer_norm.weight[0] = 0
        model.model.decoder.layers[1].self_attn_layer_norm.bias[0] = 0
    found, _ = fit(model, "opt_interior")
    assert found.islands == ("model.decoder.layers.1",)


def test_with_what_was_found_it_is_in_range() -> None:
    """Folded in, the rescale has the peaks that were promised."""
    model, batches = made("qwen3"), prompts("qwen3", count=2, tokens=24, seed=3)
    found, _ = fit(model, "qwen3", gauges_for(model).gauges)
    assert found.rescale is not None
    Fold(model).move_to(found.rescale)
    largest = record_peaks(model, batches, torch.bfloat16).largest
    assert largest is not None
    assert largest.largest == found.left <= AIM
