"""What is discovered in an architecture: which moves make hidden states, products and scores smaller."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
import transformers as tf
from rescaling.architectures import config_of, found_in, gauge_of, real_model
from rescaling.discovery.patterns import INTERIORS, LAYER, PRE_NORM, pattern

from safe_dtype.facts import Rescale
from safe_dtype.rescaling import fold_in
from safe_dtype.rescaling.discovery.discover import discover, gauges_for
from safe_dtype.rescaling.discovery.twin import make_twin


def test_hybrid_layers() -> None:
    """Layers of different kinds, with attention or a state space, with experts or without, are moved each in its way."""
    moves = pattern(gauge_of("jamba", "residual"))
    assert {moves[f"{LAYER}.{name}.weight"] for name in ("self_attn.o_proj", "mamba.out_proj")} == {-1}
    assert moves[f"{LAYER}.feed_forward.down_proj.weight"] == moves[f"{LAYER}.feed_forward.experts.down_proj"] == -1


def test_twin_stays() -> None:
    """A twin comes back as it was: weights, eps, hooks, gradients."""
    twin = make_twin(tf.LlamaForCausalLM, config_of("llama"))
    before = {name: one.clone() for name, one in twin.model.state_dict().items()}
    discover(twin)
    assert all(torch.equal(one, before[name]) for name, one in twin.model.state_dict().items())
    assert not any(one.requires_grad or one.grad is not None for one in twin.model.parameters())
    assert twin.model.model.norm.variance_epsilon == config_of("llama").rms_norm_eps
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in twin.model.modules())


def test_what_makes_no_difference() -> None:
    """What was found depends on no random state, and leaves it alone."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    found = discover(make_twin(tf.LlamaForCausalLM, config_of("llama")))
    assert torch.equal(torch.get_rng_state(), before)
    assert [one.gauge for one in found.proved] == [one.gauge for one in found_in("llama").proved]


def test_gauges_of_a_model() -> None:
    """A model gets the gauges of its twin, for all of its own layers: hidden states first."""
    found = gauges_for(real_model("llama", num_hidden_layers=7, hidden_size=128))
    assert found.problem == ""
    assert found.gauges[0].name == "residual"
    assert pattern(found.gauges[0]) == PRE_NORM
    assert {move.target.split(".")[2] for move in found.gauges[0].moves if "layers" in move.target} == set("0123456")
    assert {one.name for one in found.gauges[1:]} >= set(INTERIORS["llama"])


@pytest.mark.parametrize(
    "values",
    [
        {"use_cache": False}, {"return_dict": False}, {"output_hidden_states": True}, {"torchscript": True},
        {"problem_type": "regression"}, {"id2label": {0: "a", 1: "b", 2: "c"}}, {"pad_token_id": 77}, {"is_decoder": True},
    ],
    ids=lambda values: next(iter(values)),
)  # fmt: skip
def test_keys_that_compute_nothing(values: dict[str, object]) -> None:
    """What a config says of outputs, labels and tokens costs no gauge, and the fold is proved as without it."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = tf.BertForSequenceClassification(tf.BertConfig(**sizes, vocab_size=96)).eval()
    gauges = gauges_for(model).gauges
    for name, value in values.items():
        setattr(model.config, name, value)
    assert gauges
    assert [gauge.name for gauge in gauges_for(model).gauges] == [gauge.name for gauge in gauges]
    _, effect = fold_in(model, Rescale(tuple((gauge, 2) for gauge in gauges)))
    assert effect.bitwise


def test_on_the_meta_device() -> None:
    """Only names and shapes are looked at: the model may have no weights yet, and the caller be about to load."""
    with torch.device("meta"), torch.inference_mode():
        model = tf.LlamaForCausalLM(config_of("llama"))
        found = gauges_for(model)
    assert [one.name for one in found.gauges] == [one.gauge.name for one in found_in("llama").proved]


def test_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found is kept on disk, and comes back the same, in no time."""
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path))
    model = real_model("phi3")
    first = gauges_for(model)
    started = time.perf_counter()
    assert gauges_for(model) == first
    assert time.perf_counter() - started < 0.1
    assert len(list(tmp_path.glob("*.json"))) == 1
    gauges_for(real_model("phi3", num_hidden_layers=4))
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_what_did_not_run() -> None:
    """An image encoder does not run on the twin's text: that nothing is proved with images is said."""
    text, image = (
        config_of("qwen3").to_dict(),
        {"hidden_size": 32, "depth": 3, "num_heads": 2, "intermediate_size": 64},
    )
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3], "mrope_interleaved": True}
    config = tf.Qwen3VLConfig(
        text_config={**text, "rope_parameters": rope}, vision_config={**image, "out_hidden_size": 64, "num_position_embeddings": 16},
    )  # fmt: skip
    with torch.device("meta"):
        found = gauges_for(tf.Qwen3VLForConditionalGeneration(config))
    assert found.gauges[0].name == "residual"
    assert found.not_run == ("model.visual",)
    assert "model.visual" in found.problem


def test_no_model_of_transformers() -> None:
    """A module that is no model of transformers gets no gauges, and the reason."""
    found = gauges_for(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    assert found.gauges == ()
    assert "Linear" in found.problem


def test_unsuitable_model() -> None:
    """A model without a twin gets no gauges, and the reason."""
    model = real_model("llama")
    model.config.num_attention_heads = 0
    found = gauges_for(model)
    assert found.gauges == ()
    assert "LlamaForCausalLM" in found.problem
