"""From a model as it was saved to the same one in float16: names found, islands made, or the model as it was."""

from __future__ import annotations

from typing import Any

import factories as f
import pytest
import torch
import transformers as tf
from engineered import engineered, prompts
from rescaling.gauges_by_hand import residual
from torch import Tensor, nn

from safe_dtype.errors import RescaleError
from safe_dtype.facts import BFLOAT16, FLOAT8_E4M3, FLOAT16, FLOAT32, INT8, Dtype, Gauge, Rescale
from safe_dtype.models.islands import islands_in
from safe_dtype.numerics import compute_in
from safe_dtype.planning import make_plan
from safe_dtype.rescaling import rescaled_of
from safe_dtype.rescaling.to_float16 import before_half, computing_in_full, computing_on, halve


def run(model: Any, family: str = "llama") -> Tensor:
    """Return what `model` says of a prompt under which its family overflows, in float32."""
    with torch.inference_mode():
        returned = model(**prompts(family, count=1, tokens=24, seed=3)[0])
    found: Tensor = returned[0].float()
    return found


def rescale(*, prefix: str = "model.", bits: int = 8) -> Rescale:
    """Return the rescale of the engineered Llama, with names as in a model whose inner one lies at `prefix`."""
    found = Rescale(((residual(engineered("llama")), bits),))
    return found.renamed(lambda name: f"{prefix}{name.removeprefix('model.')}")


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of all parameters."""
    return {name: one.detach().clone() for name, one in model.named_parameters()}


@pytest.mark.parametrize("saved", [torch.bfloat16, torch.float32], ids=str)
def test_halved(saved: torch.dtype) -> None:
    """A model in either dtype comes into float16 whole, config and all, with nearly the results that it had."""
    truth = run(engineered("llama"))
    model = engineered("llama").to(saved)
    model.config.dtype = saved
    found = halve(model, rescale())
    assert found is rescaled_of(model) is not None
    assert {one.dtype for one in model.parameters()} == {torch.float16}
    assert model.config.dtype == torch.float16
    torch.testing.assert_close(run(model), truth, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("saved", "first"),
    [(BFLOAT16, BFLOAT16), (FLOAT32, FLOAT32), (FLOAT16, FLOAT32), (FLOAT8_E4M3, FLOAT32), (INT8, FLOAT32)],
    ids=str,
)
def test_what_it_is_loaded_in_first(saved: Dtype, first: Dtype) -> None:
    """Its own dtype, if a model computes in that and its activations cannot leave it."""
    assert before_half(saved) == first


@pytest.mark.parametrize("prefix", ["model.", ""], ids=["as-with-a-head", "as-without"])
@pytest.mark.parametrize("head", [True, False], ids=["with-a-head", "without"])
def test_names(prefix: str, head: bool) -> None:
    """A rescale and islands that were found with a head fit the model without, and the other way round."""
    made, full = engineered("llama").bfloat16(), engineered("llama")
    model, truth = (made, run(full)) if head else (made.model, run(full.model))
    halve(model, rescale(prefix=prefix), [f"{prefix}layers.1.mlp.act_fn"])
    torch.testing.assert_close(run(model), truth, rtol=0, atol=0.05)
    assert list(islands_in(model)) == ["model.layers.1.mlp.act_fn" if head else "layers.1.mlp.act_fn"]


def test_names_beside_the_inner_model() -> None:
    """What lies beside the inner model keeps its name."""
    model = engineered("llama").bfloat16()
    halve(model, rescale(), ["lm_head"])
    assert model.lm_head.weight.dtype == torch.float32
    assert list(islands_in(model)) == ["lm_head"]


def test_gpt2_without_its_head() -> None:
    """Prefixes differ between families; an encoder-decoder has none."""
    sizes = {"vocab_size": 96, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    torch.manual_seed(0)
    model = tf.GPT2Model(tf.GPT2Config(**sizes)).eval().bfloat16()
    halve(model, None, ["transformer.h.1.mlp"])
    assert list(islands_in(model)) == ["h.1.mlp"]
    encoder = engineered("t5").bfloat16()
    halve(encoder, None, ["encoder.block.1.layer.1"])
    assert list(islands_in(encoder)) == ["encoder.block.1.layer.1"]


def test_islands_alone() -> None:
    """Without a rescale the named modules go to float32, the rest to float16; results are finite and right."""
    truth = run(engineered("opt_interior"), "opt_interior")
    model = engineered("opt_interior").bfloat16()
    name = "model.decoder.layers.1"
    assert halve(model, None, [name]) is None
    assert rescaled_of(model) is None
    inside = {id(one) for one in model.get_submodule(name).parameters()}
    assert {one.dtype for one in model.parameters() if id(one) in inside} == {torch.float32}
    assert {one.dtype for one in model.parameters() if id(one) not in inside} == {torch.float16}
    torch.testing.assert_close(run(model, "opt_interior"), truth, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("islands", "said"),
    [
        pytest.param(["model.layers.9.mlp"], "no module model.layers.9.mlp", id="no-such-module"),
        pytest.param(["lm_head"], "tied to another", id="tied"),
    ],
)
def test_islands_that_cannot_be(islands: list[str], said: str) -> None:
    """An island that cannot be one is refused before anything has changed."""
    model = engineered("qwen3").bfloat16()
    before = weights(model)
    with pytest.raises(RescaleError, match=said):
        halve(model, Rescale(((residual(model), 8),)), islands)
    assert all(torch.equal(one, before[name]) for name, one in model.named_parameters())
    assert model.config.dtype != torch.float16
    assert rescaled_of(model) is None


def test_wrong_gauge() -> None:
    """A rescale that is not exact is refused, and the model is in its old dtype, bit for bit."""
    model = engineered("llama").bfloat16()
    before, truth = weights(model), run(model)
    gauge = residual(model)
    wrong = Gauge("residual", tuple(move for move in gauge.moves if "layers.1.mlp" not in move.target))
    with pytest.raises(RescaleError, match="differ by"):
        halve(model, Rescale(((wrong, 8),)))
    assert all(torch.equal(one, before[name]) for name, one in model.named_parameters())
    assert torch.equal(run(model), truth)
    assert rescaled_of(model) is None


def test_offloaded(tmp_path: Any) -> None:
    """Weights that are brought in for every step are not rescaled, and the refusal says so."""
    engineered("llama").bfloat16().save_pretrained(tmp_path / "model")
    layers = {f"model.layers.{place}": "disk" if place == 2 else "cpu" for place in range(4)}
    others = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    model = tf.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.bfloat16, device_map={**layers, **others}, offload_folder=tmp_path / "disk"
    )
    with pytest.raises(RescaleError, match="offloaded"):
        halve(model, rescale())


@pytest.mark.parametrize(
    ("device", "dtype", "casts"),
    [
        pytest.param(f.AMPERE, BFLOAT16, False, id="native"),
        pytest.param(f.TURING, BFLOAT16, True, id="emulated"),
        pytest.param(f.RDNA2, BFLOAT16, True, id="crashes"),
        pytest.param(f.ARC, FLOAT16, True, id="wrong"),
        pytest.param(f.ARC, FLOAT32, False, id="float32-is-always-right"),
    ],
)
def test_how_the_proof_computes(device: Any, dtype: Any, casts: bool) -> None:
    """Where products in the model's dtype are slow or wrong, they are computed in float32."""
    assert isinstance(computing_on(device, dtype), type(compute_in(FLOAT32))) is casts


@pytest.mark.parametrize(
    ("device", "saved", "casts"),
    [
        pytest.param(f.AMPERE, BFLOAT16, False, id="native"),
        pytest.param(f.TURING, BFLOAT16, False, id="emulated-slowly-will-do"),
        pytest.param(f.RDNA2, BFLOAT16, True, id="crashes"),
        pytest.param(f.RDNA2, FLOAT32, False, id="float32"),
    ],
)
def test_how_the_proof_computes_by_the_plan(device: Any, saved: Any, casts: bool) -> None:
    """For the few tokens of a proof only a dtype whose products fail is computed in float32."""
    plan = make_plan(device, f.checkpoint(saved), ordered=FLOAT16)
    assert isinstance(computing_in_full(plan), type(compute_in(FLOAT32))) is casts
