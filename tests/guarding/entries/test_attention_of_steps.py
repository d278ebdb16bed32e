"""Steps of models that were planned for a CPU in 16 bit compute one row of attention in the quick form, and only they."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from transformers.modeling_utils import AttentionInterface

from safe_dtype import SafeAutoModelForCausalLM, guard, report, unguard
from safe_dtype.errors import SafeDtypeWarning
from safe_dtype.guarding.entries import attention_of_steps
from safe_dtype.models.recast import recast
from safe_dtype.testing import fault

PROMPT = torch.arange(3, 67)[None]
PADDED = torch.cat((torch.zeros(1, 5), torch.ones(1, 59)), 1).long()


def save(folder: Path, dtype: str, shared: int) -> Path:
    """Save a seeded Qwen3 with 8 heads, of which some share keys and values."""
    torch.manual_seed(0)
    config = tf.Qwen3Config(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=shared, head_dim=16, eos_token_id=None, pad_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    model = tf.Qwen3ForCausalLM(config).eval()
    recast(model, {torch.float32}, getattr(torch, dtype))
    model.save_pretrained(folder)
    return folder


def planned(folder: Path, **options: Any) -> Any:
    """Return the model as we load it."""
    return SafeAutoModelForCausalLM.from_pretrained(folder, **options).eval()


def plain(folder: Path) -> Any:
    """Return the model as transformers loads it."""
    return tf.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


class Rows:
    """How often the quick form was taken."""

    def __init__(self) -> None:
        self.count = 0


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Rows:
    """Count."""
    counts, attention = Rows(), attention_of_steps.attention_by_rows

    def counting(*args: Any) -> Any:
        counts.count += 1
        return attention(*args)

    monkeypatch.setattr(attention_of_steps, "attention_by_rows", counting)
    return counts


@torch.no_grad()
def steps(model: Any, mask: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Return the logits of a prompt's last token and of three tokens after it."""
    cache = tf.DynamicCache(config=model.config)
    options = {} if mask is None else {"attention_mask": mask}
    logits = [model(input_ids=PROMPT, past_key_values=cache, **options).logits[:, -1:]]
    for token in range(3):
        if mask is not None:
            options["attention_mask"] = mask = torch.cat((mask, torch.ones(1, 1).long()), 1)
        logits.append(model(input_ids=torch.tensor([[token]]), past_key_values=cache, **options).logits)
    return logits


@pytest.mark.parametrize("mask", [None, PADDED], ids=["whole", "padded"])
@pytest.mark.parametrize("shared", [2, 8])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_by_rows(dtype: str, shared: int, mask: torch.Tensor | None, tmp_path: Path, rows: Rows) -> None:
    """Tokens are no farther from float32 than transformers' own are."""
    save(tmp_path, dtype, shared)
    theirs = steps(plain(tmp_path), mask)
    right = steps(plain(tmp_path).float(), mask)
    assert not rows.count
    mine = steps(planned(tmp_path, dtype=dtype), mask)
    assert rows.count == 6
    errors = [torch.cat(logits) - torch.cat(right) for logits in (mine, theirs)]
    assert errors[0].norm() <= 1.5 * errors[1].norm()


def test_only_there(tmp_path: Path, rows: Rows) -> None:
    """Beside a planned model others are computed as ever, and so is it without its guard; nothing is left behind."""
    save(tmp_path, "bfloat16", 2)
    gc.collect()  # of other tests
    asked = AttentionInterface.__dict__["get_interface"]
    expected = steps(plain(tmp_path))
    model = planned(tmp_path, dtype="bfloat16")
    for other in (plain(tmp_path), guard(plain(tmp_path))):
        assert all(torch.equal(one, two) for one, two in zip(steps(other), expected, strict=True))
    assert not rows.count
    steps(model)
    assert rows.count == 6
    unguard(model)
    steps(model)
    assert rows.count == 6
    assert AttentionInterface.__dict__["get_interface"] is asked


@pytest.mark.parametrize("how", ["float32", "eager", "gradient", "weights"])
def test_left_to_torch(how: str, tmp_path: Path, rows: Rows) -> None:
    """float32, another implementation, gradients, and steps that return the weights are computed as ever."""
    dtype = "float32" if how == "float32" else "bfloat16"
    model = planned(save(tmp_path, dtype, 2), dtype=dtype)
    if how in ("eager", "weights"):
        model.set_attn_implementation("eager")
    if how == "gradient":
        cache = tf.DynamicCache(config=model.config)
        model(input_ids=PROMPT, past_key_values=cache)
        model(input_ids=PROMPT[:, :1], past_key_values=cache).logits.sum().backward()
    elif how == "weights":
        output = model.generate(
            PROMPT, max_new_tokens=3, output_attentions=True, return_dict_in_generate=True, do_sample=False
        )
        assert output.attentions[1][0].shape == (1, 8, 1, 65)
    else:
        steps(model)
    assert not rows.count


def test_generate_and_roll_back(tmp_path: Path, rows: Rows) -> None:
    """A generation that fails on the way goes on in float32, where attention is torch's again, with the cache it had."""
    model = planned(save(tmp_path, "bfloat16", 2), dtype="bfloat16")
    expected = model.generate(PROMPT, max_new_tokens=5, do_sample=False)
    counted = rows.count
    assert counted == 8
    with fault(model, "model.layers.1.mlp.down_proj", "nan", call=5), pytest.warns(SafeDtypeWarning):
        tokens = model.generate(PROMPT, max_new_tokens=12, do_sample=False)
    assert report(model).events
    assert tokens.shape == (1, 76)
    assert torch.equal(tokens[:, : expected.shape[1]], expected)
    assert rows.count - counted <= 2 * 6
