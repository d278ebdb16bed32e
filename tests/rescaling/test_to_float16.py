"""From a model as it was saved to the same one in float16: names found, islands made, or the model as it was."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import factories as f
import pytest
import torch
import transformers as tf
from engineered import engineered, prompts
from rescaling.gauges_by_hand import residual
from torch import Tensor, nn

from safe_dtype import SafeAutoModelForCausalLM, report
from safe_dtype.errors import RescaleError, SafeDtypeWarning
from safe_dtype.facts import BFLOAT16, FLOAT8_E4M3, FLOAT16, FLOAT32, INT8, Dtype, Gauge, Rescale
from safe_dtype.models.islands import islands_in
from safe_dtype.numerics import compute_in
from safe_dtype.planning import make_plan
from safe_dtype.rescaling import gauges_for, rescaled_of
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


_SIZES = {
    "vocab_size": 160, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.15,
}  # fmt: skip
_SCALED: dict[str, tuple[Any, Any]] = {
    "gemma": (tf.GemmaForCausalLM, tf.GemmaConfig(**_SIZES, head_dim=16)),
    "gemma2": (tf.Gemma2ForCausalLM, tf.Gemma2Config(**_SIZES, head_dim=16)),
    "gemma3": (tf.Gemma3ForCausalLM, tf.Gemma3TextConfig(**_SIZES, head_dim=16)),
    "granite": (tf.GraniteForCausalLM, tf.GraniteConfig(**_SIZES, embedding_multiplier=12.0)),
    "granite-whole": (tf.GraniteForCausalLM, tf.GraniteConfig(**_SIZES, embedding_multiplier=12)),
    "llama": (tf.LlamaForCausalLM, tf.LlamaConfig(**_SIZES)),
}
_RARE, _CHANNEL = 17, 5


def far_reaching(name: str, reach: float, *, hidden_from_head: bool = True) -> Any:
    """Return a bfloat16 model in which the embedding of one token has a number of that size."""
    torch.manual_seed(0)
    make, config = _SCALED[name]
    model = make(config).to(torch.bfloat16).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight[_RARE] = 0
        model.get_input_embeddings().weight[_RARE, _CHANNEL] = reach
        if not hidden_from_head:  # no other token makes the sign of what its row gives uncertain
            model.get_input_embeddings().weight[:_RARE, _CHANNEL] = -2
            model.get_input_embeddings().weight[_RARE + 1 :, _CHANNEL] = -2
        else:  # the gains of Gemma are 1 + weight
            model.model.norm.weight[_CHANNEL] = -1.0 if name.startswith("gemma") else 0.0
    return model


def log_probabilities(model: Any, ids: Tensor) -> Tensor:
    """Return what `model` says of tokens, in float32."""
    with torch.inference_mode():
        found: Tensor = model(ids).logits.float().log_softmax(-1)
    return found


@pytest.mark.parametrize(
    ("name", "reach"),
    [
        *[(name, 6.4e4) for name in _SCALED],
        ("gemma", 2.09e4),
        *[pytest.param(name, 2.09e4, marks=pytest.mark.slow) for name in _SCALED if name != "gemma"],
    ],
)
def test_embedding_that_is_multiplied(name: str, reach: float, tmp_path: Any, monkeypatch: Any) -> None:
    """Weights that float16 holds, times 8 or 12, leave its range; loaded in float16 no step ever fails for it."""
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "cache"))
    made = far_reaching(name, reach)
    made.save_pretrained(tmp_path / "checkpoint")
    model = SafeAutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint", dtype="float16")
    ids = torch.randint(20, 160, (2, 24), generator=torch.Generator().manual_seed(1))
    for batch in (ids, torch.cat([ids[:, :9], torch.full((2, 1), _RARE), ids[:, 9:]], 1)):
        expected, found = log_probabilities(made.float(), batch), log_probabilities(model, batch)
        assert float((expected.exp() * (expected - found)).sum(-1).mean()) < 1e-5
    assert (report(model).events, model.dtype) == ((), torch.float16)


def test_soft_cap_behind_a_tied_head(tmp_path: Any, monkeypatch: Any) -> None:
    """Where the head is the embedding its products overflow as well, which the cap behind it hides."""
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "cache"))
    made = far_reaching("gemma2", 2.09e4, hidden_from_head=False)
    made.save_pretrained(tmp_path / "checkpoint")
    model = SafeAutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint", dtype="float16")
    ids = torch.tensor([[30, 40, _RARE, 50, 60]])
    expected, found = log_probabilities(made.float(), ids), log_probabilities(model, ids)
    assert float((expected.exp() * (expected - found)).sum(-1).mean()) < 1e-5
    assert (report(model).events, model.dtype) == ((), torch.float16)


def test_logits_beyond_float16(tmp_path: Any, monkeypatch: Any) -> None:
    """Logits that float16 cannot hold stay a reason against it, and the head is named."""
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "cache"))
    far_reaching("gemma", 2.09e4, hidden_from_head=False).save_pretrained(tmp_path / "checkpoint")
    with pytest.warns(SafeDtypeWarning, match="in lm_head"):
        SafeAutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint", dtype="float16")


def scaled_in_float16() -> Any:
    """Return a Gemma 2 in float16 with its embedding's scale moved."""
    model = far_reaching("gemma2", 2.09e4)
    gauges = [one for one in gauges_for(model).gauges if one.name in ("residual", "embedding scale")]
    assert halve(model, Rescale(tuple((gauge, 6) for gauge in gauges))) is not None
    return model


_IDS = torch.tensor([[30, 40, _RARE, 50, 60]])
_CHANGED: dict[str, Any] = {
    "embeddings-handed": lambda model: model(inputs_embeds=model.get_input_embeddings()(_IDS)).logits,
    "own-embeddings": lambda model: (
        model(inputs_embeds=far_reaching("gemma2", 2.09e4).float().model.embed_tokens(_IDS)).logits
    ),
    "another-scale": lambda model: model.model.embed_tokens.embed_scale.fill_(4.0) and model(_IDS).logits,
    "part-copied": lambda model: copy.deepcopy(model.model.embed_tokens)(_IDS),
    "whole-copied": lambda model: copy.deepcopy(model)(_IDS).logits,
    "called-alone": lambda model: model.model.embed_tokens(_IDS),
    "hidden-states": lambda model: model(_IDS, output_hidden_states=True).hidden_states[0],
    "cast": lambda model: model.float()(_IDS).logits,
}


@pytest.mark.parametrize("name", _CHANGED)
def test_scale_that_was_moved(name: str) -> None:
    """Whoever reads, hands in or changes embeddings of a rescaled model gets what the float32 model gives."""
    with torch.inference_mode(mode=False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", SafeDtypeWarning)
        expected = _CHANGED[name](far_reaching("gemma2", 2.09e4).float())
        found = _CHANGED[name](scaled_in_float16())
    if name == "part-copied":  # in float16 still, which does not hold the large one
        expected = expected.half().float()
    torch.testing.assert_close(found.float(), expected, rtol=5e-3, atol=0.02)


def test_scale_is_raised_and_taken_back() -> None:
    """Raised by some bits the results are the same; taken back the scale is what it was, bit for bit."""
    model = scaled_in_float16()
    before, rescaled = log_probabilities(model, _IDS), rescaled_of(model)
    assert rescaled is not None
    rescaled.raise_bits(2)
    torch.testing.assert_close(log_probabilities(model, _IDS), before, rtol=0, atol=0.01)
    rescaled.fold.undo()
    assert float(model.model.embed_tokens.embed_scale) == 8.0
