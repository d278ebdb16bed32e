"""From the twin to a real model: blocks of the same kind are moved in the same way, and unknown ones are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from rescaling.architectures import found_in, gauge_of, real_model, twin_of
from torch import Tensor, nn

from safe_dtype.facts import Gauge, Move, Part, Rescale
from safe_dtype.rescaling import Fold
from safe_dtype.rescaling.discovery.discover import gauges_for
from safe_dtype.rescaling.discovery.transfer import TransferError, transfer

LARGER: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 7, "hidden_size": 128, "intermediate_size": 256},
    "qwen3": {"num_hidden_layers": 7, "intermediate_size": 160},
    "gemma3": {"num_hidden_layers": 7, "intermediate_size": 160},
    "phi3": {"num_hidden_layers": 7, "hidden_size": 128, "intermediate_size": 192},
    "gpt_oss": {"num_hidden_layers": 6, "num_local_experts": 6},
    "mixtral": {"num_hidden_layers": 5, "num_local_experts": 7},
    "olmo2": {"num_hidden_layers": 7, "vocab_size": 200},
    "jamba": {"num_hidden_layers": 7, "num_experts": 6},
    "t5": {"num_layers": 4, "num_decoder_layers": 5, "d_ff": 160},
}


def outputs(model: Any) -> Tensor:
    """Return the logits for a few tokens."""
    ids = torch.arange(24).reshape(2, 12)
    more = {"decoder_input_ids": ids + 30} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        logits: Tensor = model(ids, **more, use_cache=False).logits
    return logits


# Torch 2.6 multiplies queries and keys by the root of the number between them, which a shift by 5 rounds.
@pytest.mark.needs("torch>=2.13")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "jamba" else name for name in LARGER]
)
def test_larger_model(name: str) -> None:
    """With every gauge of a three-layer twin in force, a deeper and wider model gives the same bits in float32."""
    model = real_model(name, **LARGER[name])
    found = gauges_for(model)
    expected = outputs(model)
    fold = Fold(model)
    assert found.problem == ""
    assert {one.name for one in found.gauges} >= {one.gauge.name for one in found_in(name).proved if one.stack}
    for gauge in found.gauges:
        fold.move_to(Rescale(((gauge, 5),)))
        assert torch.equal(outputs(model), expected), gauge.name
    fold.move_to(Rescale(tuple((gauge, 3) for gauge in found.gauges)))
    assert torch.equal(outputs(model), expected)


def test_first_layers_of_another_kind() -> None:
    """A model whose first layers are dense, and the others mixtures of experts, gets the moves of each kind."""
    sizes = {
        "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "num_attention_heads": 4,
        "num_key_value_heads": 4, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 2,
        "topk_group": 1, "q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
        "v_head_dim": 16,
    }  # fmt: skip
    config = tf.DeepseekV3Config(**sizes, num_hidden_layers=6, first_k_dense_replace=3)
    torch.manual_seed(0)
    model = tf.DeepseekV3ForCausalLM(config).eval()
    expected = outputs(model)
    gauge = gauges_for(model).gauges[0]
    moved = {move.target for move in gauge.moves}
    assert "model.layers.2.mlp.down_proj.weight" in moved
    assert {"model.layers.3.mlp.experts.down_proj", "model.layers.5.mlp.shared_experts.down_proj.weight"} <= moved
    Fold(model).move_to(Rescale(((gauge, 6),)))
    assert torch.equal(outputs(model), expected)


def _transferred(gauge: Gauge, model: nn.Module, *, whole: bool = True) -> Gauge:
    return transfer(gauge, found_in("llama").traced.stacks, twin_of("llama").model, model, whole=whole)


def test_unknown_block() -> None:
    """A model with a block that the twin has not is refused, by name."""
    model = real_model("llama", num_hidden_layers=4)
    model.model.layers[2] = real_model("olmo2").model.layers[0]
    with pytest.raises(TransferError, match=r"model\.layers\.2 \(Olmo2DecoderLayer\)"):
        _transferred(gauge_of("llama", "residual"), model)


def test_block_with_something_added() -> None:
    """A block of a known class with a part that the twin's blocks lack is not known."""
    model = real_model("llama")
    model.model.layers[1].mlp.adapter = nn.Linear(64, 64)
    with pytest.raises(TransferError, match=r"model\.layers\.1"):
        _transferred(gauge_of("llama", "residual"), model)


def test_unknown_block_and_a_gauge_inside_of_others() -> None:
    """What happens inside of known blocks does not depend on unknown ones: these stay as they are."""
    model = real_model("llama", num_hidden_layers=4)
    model.model.layers[2] = real_model("olmo2").model.layers[0]
    gauge = _transferred(gauge_of("llama", "mlp.up_proj / mlp.down_proj"), model, whole=False)
    assert {move.target.split(".")[2] for move in gauge.moves} == {"0", "1", "3"}


def test_blocks_alike_that_are_moved_differently() -> None:
    """The first block, the last one and those between may be moved differently: the real ones by their place."""
    gauge = gauge_of("llama", "residual")
    layers = [
        tuple(move for move in gauge.moves if move.target.startswith(f"model.layers.{place}.")) for place in range(3)
    ]
    others = tuple(move for move in gauge.moves if move not in sum(layers, ()))
    first_differs = Gauge("residual", (*layers[0][:-1], *layers[1], *layers[2], *others))
    moved = _transferred(first_differs, real_model("llama", num_hidden_layers=5))
    counts = [sum(move.target.startswith(f"model.layers.{place}.") for move in moved.moves) for place in range(5)]
    assert counts == [len(layers[0]) - 1, *[len(layers[0])] * 4]


def test_rows_in_another_proportion() -> None:
    """Rows of a weight are moved only where its parts are in the proportion that they have in the twin."""
    gauge = gauge_of("phi3", "self_attn.qkv_proj[75%:100%] / self_attn.o_proj")
    stacks, twin = found_in("phi3").traced.stacks, twin_of("phi3").model
    assert transfer(gauge, stacks, twin, real_model("phi3", hidden_size=128)).moves
    with pytest.raises(TransferError, match="is not made up as in the twin"):
        transfer(gauge, stacks, twin, real_model("phi3", num_key_value_heads=4))


def test_another_ratio_of_heads() -> None:
    """The twin follows the real ratio of heads, and its gauges are those of the real rows."""
    model = real_model("phi3", num_key_value_heads=4)
    expected = outputs(model)
    values = next(one for one in gauges_for(model).gauges if one.name.endswith("self_attn.o_proj"))
    rows = [move.rows for move in values.moves if move.rows is not None]
    assert {(one.start, one.stop) for one in rows} == {(2 / 3, 1.0)}
    Fold(model).move_to(Rescale(((values, 4),)))
    assert torch.equal(outputs(model), expected)


def test_moves_outside_of_blocks() -> None:
    """What is moved outside of blocks has the same name in the real model; if it is not there, that is said."""
    gauge = Gauge("wrong", (Move(Part.WEIGHT, "model.norm.weight", 1),))
    assert _transferred(gauge, real_model("llama")) == gauge
    model = real_model("llama")
    model.model.norm = nn.Identity()
    with pytest.raises(TransferError, match=r"model\.norm\.weight"):
        _transferred(gauge, model)


def test_experts() -> None:
    """All experts of a layer are moved, each a module of its own, be they more than the twin's."""
    sizes = {"vocab_size": 96, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 4, "num_heads": 4}
    config = tf.SwitchTransformersConfig(
        **sizes, num_sparse_encoder_layers=2, num_experts=12, decoder_start_token_id=0
    )
    with torch.device("meta"):
        model = tf.SwitchTransformersForConditionalGeneration(config)
    moved = [move.target for move in gauges_for(model).gauges[0].moves]
    writers = {f"encoder.block.1.layer.1.mlp.experts.expert_{place}.wo.weight" for place in range(12)}
    assert writers <= set(moved)
