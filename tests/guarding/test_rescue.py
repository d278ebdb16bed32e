"""Models that overflow float16, rescued: planned when they are loaded, or cured at the very step that fails."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from engineered import KINDS, engineered, prompts, saved
from rescaling.gauges_by_hand import residual
from torch import Tensor

from safe_dtype import SafeAutoModel, guard, plan_of, report
from safe_dtype.facts import FLOAT16, FLOAT32, Rescale
from safe_dtype.guarding import FailureKind
from safe_dtype.rescaling import rescaled_of
from safe_dtype.rescaling.to_float16 import halve

NEW = 10


def load(family: str, folder: Path, dtype: str = "float16") -> Any:
    """Return the model of `folder`, with the attention under which its family fails."""
    kernels = KINDS[family].attn_implementation
    more = {"attn_implementation": kernels} if kernels else {}
    return SafeAutoModel.from_pretrained(folder, dtype=dtype, **more)


def prompt(family: str, *, rows: int = 1, seed: int = 5) -> dict[str, Tensor]:
    """Return inputs of `generate` that make the family overflow."""
    found = [one["input_ids"] for one in prompts(family, count=rows, tokens=24, seed=seed)]
    ids = torch.cat(found)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def drift(reference: Any, candidate: Any, family: str) -> tuple[float, float]:
    """Return the median KL in nats, and the share of the positions whose first choice is the same."""
    kls, same = [], []
    for batch in prompts(family, count=4, tokens=40, seed=23):
        with torch.inference_mode():
            truth, found = (one(**batch).logits.float().log_softmax(-1) for one in (reference, candidate))
        kls.append((truth.exp() * (truth - found)).sum(-1).flatten())
        same.append((truth.argmax(-1) == found.argmax(-1)).float().flatten())
    return float(torch.cat(kls).median()), float(torch.cat(same).mean())


# One for each place that overflows, and one of each kind of rescue; the others take longer, and no other way.
RESCUED = [
    "qwen3", "t5", "qwen2_scores",
    *(pytest.param(one, marks=pytest.mark.slow) for one in ("phi3_interior", "gemma2", "gpt_oss", "opt_interior")),
]  # fmt: skip


@pytest.fixture(scope="module", params=RESCUED)
def rescue(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Any, Any]:
    """Return a family with its model in float32, in bfloat16, and rescued in float16."""
    family = str(request.param)
    folder = saved(family, tmp_path_factory.mktemp(family))
    return family, load(family, folder, "float32"), load(family, folder, "bfloat16"), load(family, folder)


def test_better_than_bfloat16(rescue: tuple[str, Any, Any, Any]) -> None:
    """The rescued model stays in float16, and is nearer to float32 than the bfloat16 that the model was made in."""
    family, full, bf16, half = rescue
    assert plan_of(half).rescale is not None or plan_of(half).islands
    kl, same = drift(full, half, family)
    kl_bf16, same_bf16 = drift(full, bf16, family)
    assert kl < kl_bf16 / 4
    assert same >= same_bf16 - 0.02  # one position of 80
    assert (half.dtype, report(half).events) == (torch.float16, ())


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({}, id="greedy"),
        pytest.param({"num_beams": 3}, id="beams"),
        pytest.param({"do_sample": True, "top_k": 20}, id="sampling"),
        pytest.param({"use_cache": False}, id="without-a-cache"),
        pytest.param({"num_beams": 2, "do_sample": True}, id="beams-and-sampling"),
    ],
)
def test_whole_generations(rescue: tuple[str, Any, Any, Any], how: dict[str, Any]) -> None:
    """Whole generations run in float16, and what they say is as likely in float32 as what float32 says."""
    family, full, _, half = rescue
    asked = {**prompt(family, rows=2), "max_new_tokens": NEW, "min_new_tokens": NEW, "return_dict_in_generate": True}
    said = []
    for model in (full, half):
        torch.manual_seed(0)
        said.append(model.generate(**asked, **how).sequences)
    assert report(half).events == ()
    first, second = (likelihood(full, prompt(family, rows=2), one) for one in said)
    assert abs(first - second) < 0.1  # one choice between equals may change all that follow it


def test_long_prompts(rescue: tuple[str, Any, Any, Any]) -> None:
    """A prompt longer than any that was measured overflows nothing, and its continuation is as likely."""
    family, full, _, half = rescue
    longest = getattr(full.config, "max_position_embeddings", 512) - NEW
    ids = prompts(family, count=1, tokens=min(480, longest), seed=31)[0]["input_ids"]
    asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    said = [one.generate(**asked, max_new_tokens=NEW, min_new_tokens=NEW) for one in (full, half)]
    assert report(half).events == ()
    assert abs(likelihood(full, asked, said[0]) - likelihood(full, asked, said[1])) < 0.1


def likelihood(model: Any, asked: dict[str, Tensor], said: Tensor) -> float:
    """Return the mean log-likelihood, in nats a token, of the last tokens of `said`."""
    given = {**asked, "decoder_input_ids": said} if model.config.is_encoder_decoder else {"input_ids": said}
    with torch.inference_mode():
        scores = model(**given).logits.log_softmax(-1)[:, :-1]
    return float(scores.gather(-1, said[:, 1:, None])[:, -NEW:].mean())


def test_hidden_states_in_their_own_size(rescue: tuple[str, Any, Any, Any]) -> None:
    """What a caller asks for on the way is what the model computes without a rescale, beyond float16's end as well."""
    family, full, _, half = rescue
    batch = prompts(family, count=1, tokens=24, seed=2)[0]
    with torch.inference_mode():
        truth, found = (one(**batch, output_hidden_states=True) for one in (full, half))
    for name in [name for name in truth if name.endswith("hidden_states")]:
        for one, other in zip(truth[name], found[name], strict=True):
            error = (other.float() - one).norm() / one.norm()
            assert error < 0.02


def test_report_says_what_was_done(rescue: tuple[str, Any, Any, Any]) -> None:
    """The report names the gauge and its moves, or the islands."""
    _, _, _, half = rescue
    text = str(report(half))
    assert "rescaled exactly" in text or "in float32: " in text


def halved(family: str, bits: int) -> Any:
    """Return a guarded model in float16, its residual stream rescaled by so many bits."""
    model = engineered(family).bfloat16()
    halve(model, Rescale(((residual(model), bits),)))
    return guard(model)


def test_too_few_bits_are_raised_in_place(tmp_path: Path) -> None:
    """An overflow in a later step raises the scale, and goes on from that step in float16: caches stay right."""
    trigger = prompt("llama")["input_ids"]
    calm = torch.full_like(trigger, 77)
    enough = halved("llama", 8)
    too_few = halved("llama", 0 + 1)
    with torch.inference_mode():
        cache = too_few(calm, use_cache=True).past_key_values
        expected_cache = enough(calm, use_cache=True).past_key_values
        assert report(too_few).events == ()
        found = too_few(trigger, past_key_values=cache).logits
        expected = enough(trigger, past_key_values=expected_cache).logits
    events = report(too_few).events
    assert events
    assert all("rescaling raised" in one.remedy for one in events)
    assert all((one.kind, one.after, one.restarted) == (FailureKind.NONFINITE, FLOAT16, False) for one in events)
    assert too_few.dtype == torch.float16
    rescaled = rescaled_of(too_few)
    assert rescaled is not None
    assert rescaled.rescale.bits("residual") > 1
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)


def test_raising_goes_on_within_a_generation() -> None:
    """The tokens are those of a model that had the bits from the beginning."""
    enough, too_few = halved("qwen3", 8), halved("qwen3", 2)
    said = [one.generate(**prompt("qwen3"), max_new_tokens=NEW, min_new_tokens=NEW) for one in (enough, too_few)]
    assert torch.equal(*said)
    assert [one.remedy for one in report(too_few).events]
    assert report(enough).events == ()


def test_rescaled_at_run_time() -> None:
    """A model that nobody planned for is rescaled when it fails, once its results can be compared."""
    model = guard(engineered("gemma2").half())
    full = engineered("gemma2")
    ids = prompt("gemma2")
    with torch.inference_mode():
        found, truth = model(**ids).logits, full(**ids).logits
    (event,) = report(model).events[:1]
    assert event.remedy in ("an exact rescaling", "float32")
    assert float((found.argmax(-1) == truth.argmax(-1)).float().mean()) > 0.9


def test_a_swallowed_overflow_is_seen() -> None:
    """Gemma 2 takes a tanh of its logits: infinities come out finite. The residual stream is watched as well."""
    model = halved_gemma(bits=0)
    with torch.inference_mode():
        model(**prompt("gemma2"))
    assert report(model).events


def halved_gemma(bits: int) -> Any:
    """Return a rescaled Gemma 2 with too few bits."""
    from safe_dtype.rescaling import gauges_for

    model = engineered("gemma2").bfloat16()
    (gauge, *_) = gauges_for(model).gauges
    halve(model, Rescale(((gauge, bits or 1),)))
    return guard(model)


@pytest.mark.parametrize("merged", [False, True], ids=["beside", "merged"])
def test_adapters(tmp_path: Path, merged: bool) -> None:
    """An adapter loaded into a rescued model does what it does in float32, merged or not."""
    folder = saved("qwen3", tmp_path / "model")
    full, half = load("qwen3", folder, "float32"), load("qwen3", folder)
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["q_proj", "o_proj", "down_proj"], r=4, init_lora_weights=False)
    made = peft.get_peft_model(copy.deepcopy(full), config)
    with torch.no_grad():
        for name, one in made.named_parameters():
            if "lora_B" in name:
                one.mul_(0.05)
    made.save_pretrained(tmp_path / "adapter")
    models = [peft.PeftModel.from_pretrained(one, tmp_path / "adapter").eval() for one in (full, half)]
    if merged:
        models = [one.merge_and_unload() for one in models]
    said = [one.generate(**prompt("qwen3"), max_new_tokens=NEW, min_new_tokens=NEW) for one in models]
    assert abs(likelihood(models[0], {}, said[0]) - likelihood(models[0], {}, said[1])) < 0.1
    kl, same = drift(models[0], models[1], "qwen3")
    assert kl < 1e-4
    assert same > 0.97
    assert report(half).events == ()
    assert half.dtype == torch.float16


def test_leaving_float16_keeps_the_results() -> None:
    """A rescaled model that goes on in float32 computes what it computed before it was rescaled."""
    from safe_dtype.models.recast import recast

    model = halved("llama", 8)
    recast(model, {torch.float16, torch.bfloat16}, torch.float32)
    kl, same = drift(engineered("llama"), model, "llama")
    assert kl < 1e-5
    assert same > 0.99
    assert guard(model) is model
    assert report(model).dtype == FLOAT32
