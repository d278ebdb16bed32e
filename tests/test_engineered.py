"""The engineered models are what the tests of the rescue take them for: fine in bf16, broken in float16, at one place."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from engineered import BOS, FAMILIES, KINDS, PAD, Size, engineered, prompts, saved
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers.modeling_layers import GradientCheckpointingLayer

F16_MAX = torch.finfo(torch.float16).max
every_family = pytest.mark.parametrize("family", FAMILIES)


def families(where: str) -> pytest.MarkDecorator:
    """Parametrize with the families that overflow at one kind of place."""
    return pytest.mark.parametrize("family", [name for name, kind in KINDS.items() if kind.where == where])


@cache
def evaluation(family: str) -> tuple[dict[str, Tensor], ...]:
    """Return prompts that no model was engineered on."""
    return prompts(family, count=8, tokens=48, seed=11)


@torch.no_grad()
def logits_of(model: Any, family: str) -> Tensor:
    """Return float32 logits, of shape (positions of all prompts, vocabulary)."""
    return torch.cat([model(**prompt).logits[0].float() for prompt in evaluation(family)])


@cache
def original(family: str) -> Any:
    """Return a model to look at, not to change."""
    return engineered(family)


@cache
def reference(family: str) -> Tensor:
    """Return the logits in float32."""
    return logits_of(original(family), family)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Where a family is saved in bf16."""
    return cache(lambda family: saved(family, tmp_path_factory.mktemp(family)))


def load(family: str, folder: Path, dtype: Any = "auto") -> Any:
    """Load as a user does."""
    kind = KINDS[family]
    return kind.auto.from_pretrained(folder, dtype=dtype, attn_implementation=kind.attn_implementation)


def agreement(a: Tensor, b: Tensor) -> float:
    """Return at which share of the positions two models have the same first choice."""
    return float((a.argmax(-1) == b.argmax(-1)).double().mean())


class Products(TorchFunctionMode):
    """Remember the largest number in what a `torch.matmul` of queries and keys gives, before anything scales it."""

    peak = 0.0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function."""
        found = func(*args, **(kwargs or {}))
        if func is torch.matmul and found.dim() == 4 and found.shape[-1] == found.shape[-2]:
            self.peak = max(self.peak, float(found.abs().max()))
        return found


@torch.no_grad()
def peaks(family: str) -> list[dict[str, float]]:
    """Return for each prompt the largest magnitude of the layers' outputs, the MLPs' inside and the scores."""
    model, found = engineered(family), []

    def watch(place: str) -> Any:
        def hook(_: Any, args: Any, output: Any = None) -> None:
            value = args[0] if output is None else output[0] if isinstance(output, tuple) else output
            found[-1][place] = max(found[-1][place], float(value.abs().max()))

        return hook

    for name, module in model.named_modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.register_forward_hook(watch("residual"))
        elif name.endswith(("down_proj", "fc2")):
            module.register_forward_pre_hook(watch("interior"))
    for prompt in evaluation(family):
        found.append({"residual": 0.0, "interior": 0.0})
        with Products() as products:
            model(**prompt)
        found[-1]["scores"] = products.peak
    return found


@every_family
def test_float32_is_a_model_with_opinions(family: str) -> None:
    """In float32 logits are finite and peaky, and many tokens are somewhere the first choice."""
    logits = reference(family)
    assert torch.isfinite(logits).all()
    assert 2.5 < logits.std() < 4.5
    chosen = logits.argmax(-1).unique(return_counts=True)[1]
    assert len(chosen) >= 30
    assert chosen.max() < 0.5 * len(logits)


@every_family
def test_bfloat16_is_fine(family: str, folder_of: Callable[[str], Path]) -> None:
    """In the dtype it is saved in, a model says what it says in float32."""
    exact, logits = reference(family), logits_of(load(family, folder_of(family)), family)
    assert torch.isfinite(logits).all()
    log_p, log_q = exact.double().log_softmax(-1), logits.double().log_softmax(-1)
    assert (log_p.exp() * (log_p - log_q)).sum(-1).median() < 1e-2
    assert agreement(exact, logits) >= 0.85


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "t5"])
def test_half_is_not_finite(family: str) -> None:
    """Cast to float16, a model has no finite logits for any prompt."""
    logits = logits_of(engineered(family).half(), family)
    assert not torch.isfinite(logits.view(len(evaluation(family)), -1)).all(-1).any()


def test_half_of_t5_is_finite_nonsense() -> None:
    """T5 clamps what overflows: nothing shows, and the first choice is wrong more often than not."""
    logits = logits_of(engineered("t5").half(), "t5")
    assert torch.isfinite(logits).all()
    assert agreement(reference("t5"), logits) < 0.6


@families("residual")
def test_the_residual_stream_overflows(family: str) -> None:
    """In every prompt a layer's output is far over float16's largest number, as in trained models."""
    assert all(1.5e5 < peak["residual"] < 6e5 for peak in peaks(family))


@families("interior")
def test_the_inside_of_an_mlp_overflows(family: str) -> None:
    """In every prompt what the last matrix of an MLP reads is over float16's largest number, and no layer's output is."""
    for peak in peaks(family):
        assert peak["interior"] > F16_MAX
        assert peak["residual"] < 3e4


@families("scores")
def test_the_scores_overflow(family: str) -> None:
    """In every prompt q.k is over float16's largest number before it is scaled, and nothing else is large."""
    for peak in peaks(family):
        assert peak["scores"] > F16_MAX
        assert peak["residual"] < 3e4
        assert peak["interior"] < 3e4


@every_family
def test_a_seed_is_a_model(family: str) -> None:
    """A seed gives the same bits again, another seed others, and torch's random state stays."""
    before = torch.get_rng_state()
    first, again, other = (engineered(family, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


@every_family
def test_weights_are_bf16_values(family: str) -> None:
    """A model is held in float32, in eval mode, and a cast to bf16 loses nothing."""
    model = original(family)
    assert not model.training
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, parameter.bfloat16().float())


@every_family
def test_no_weight_overflows(family: str) -> None:
    """Activations overflow, weights do not: each fits into float16."""
    assert all(torch.isfinite(parameter.half()).all() for parameter in original(family).parameters())


@every_family
def test_what_is_saved_comes_back(family: str, folder_of: Callable[[str], Path]) -> None:
    """`from_pretrained` finds bf16 in the config, and the same bits."""
    loaded, expected = load(family, folder_of(family)), dict(original(family).named_parameters())
    assert loaded.config.dtype == torch.bfloat16
    assert {name for name, _ in loaded.named_parameters()} == set(expected)
    for name, parameter in loaded.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter.float(), expected[name])


def test_saved_in_shards(tmp_path: Path) -> None:
    """A small shard size gives several files, which load as one."""
    folder = saved("llama", tmp_path, max_shard_size="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert torch.equal(load("llama", folder).lm_head.weight.float(), original("llama").lm_head.weight)


def test_saved_in_float32(tmp_path: Path) -> None:
    """Another dtype is saved as asked for."""
    assert load("llama", saved("llama", tmp_path, dtype=torch.float32)).dtype == torch.float32


@every_family
def test_greedy_generation(family: str, folder_of: Callable[[str], Path]) -> None:
    """Loaded in float32, a model generates eight tokens, with the token ids of its own generation config."""
    model, ids = load(family, folder_of(family), torch.float32), evaluation(family)[0]["input_ids"]
    config = model.generation_config
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)
    found = model.generate(ids, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    start = 1 if family == "t5" else ids.shape[1]
    assert found.shape == (1, start + 8)


@every_family
def test_prompts(family: str) -> None:
    """Prompts start with BOS, hold delimiters and ordinary tokens, and are the same again by seed."""
    found = prompts(family, count=4, tokens=48, seed=3)
    for one, again in zip(found, prompts(family, count=4, tokens=48, seed=3), strict=True):
        assert one["input_ids"].shape == (1, 48)
        assert one["input_ids"][0, 0] == BOS
        assert all(torch.equal(one[name], again[name]) for name in one)
    ids = torch.cat([one["input_ids"][:, 1:] for one in found])
    assert 0.02 < ((ids > 2) & (ids < 11)).double().mean() < 0.2
    assert (ids > 2).all()
    assert not torch.equal(found[0]["input_ids"], prompts(family, count=1, tokens=48, seed=4)[0]["input_ids"])


def test_prompts_of_t5() -> None:
    """T5 gets half as many tokens for its decoder, which starts with PAD, and no other family gets any."""
    assert all("decoder_input_ids" in evaluation(family)[0] for family in FAMILIES if family == "t5")
    assert not any("decoder_input_ids" in evaluation(family)[0] for family in FAMILIES if family != "t5")
    ids = evaluation("t5")[0]["decoder_input_ids"]
    assert ids.shape == (1, 24)
    assert ids[0, 0] == PAD


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
@every_family
def test_other_seeds_overflow_too(family: str, seed: int) -> None:
    """No seed is special: float32 is finite, and float16 is not, or for T5 is mostly wrong."""
    _overflows(family, "tiny", seed)


@pytest.mark.slow
@every_family
def test_the_small_size_overflows_too(family: str) -> None:
    """The size of the benchmark behaves as the tiny one."""
    _overflows(family, "small", 0)


def _overflows(family: str, size: Size, seed: int) -> None:
    model = engineered(family, size=size, seed=seed)
    exact = logits_of(model, family)
    logits = logits_of(model.half(), family)
    assert torch.isfinite(exact).all()
    assert 2.5 < exact.std() < 4.5
    assert torch.isfinite(logits).all() == (family == "t5")
    assert agreement(exact, logits) < 0.6
