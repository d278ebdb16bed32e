"""What a rescaled model is read, copied, called and trained through gives nothing of a size that is not the model's own."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from engineered import engineered, prompts
from rescaling.folding.changes import FAMILIES, blocks, body, is_near, rescued, results, writers
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

from safe_dtype.errors import SafeDtypeWarning
from safe_dtype.rescaling import rescaled_of

# What float16 has lost of a weight that was multiplied by 2^-6 before: there is no file to read it from.
EXACT: Any = {"rtol": 0, "atol": 2.0**-18}


@contextmanager
def told(count: int) -> Iterator[None]:
    """Assert that so many warnings of ours are raised in the block."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    ours = [str(one.message) for one in caught if issubclass(one.category, SafeDtypeWarning)]
    assert len(ours) == count, ours


@pytest.mark.parametrize("family", FAMILIES)
def test_used_as_it_is(family: str) -> None:
    """Who only uses it, looks at its parameters and copies it as a whole, changes nothing and is told nothing."""
    model, truth = rescued(family), results(engineered(family), family)
    with told(0):
        model.eval().requires_grad_(False)
        assert is_near(results(model, family), truth)
        copied = copy.deepcopy(model)
        assert is_near(results(copied, family), truth)
        assert sum(one.numel() for one in model.parameters()) > 0
        model.state_dict(keep_vars=True)
    assert rescaled_of(model) is not None
    assert rescaled_of(copied) is not None


@pytest.mark.parametrize("family", FAMILIES)
def test_block_copied_alone(family: str) -> None:
    """A copy of a block has its own size, and fits into a plain model; the original goes on rescaled."""
    model, plain = rescued(family), engineered(family)
    expected = results(plain, family)
    with told(0):
        copied = copy.deepcopy(blocks(model))
        for place, block in enumerate(copied):
            blocks(plain)[place] = block.float()
        assert is_near(results(plain, family), expected)
        assert is_near(results(model, family), expected)
    for own, block in zip(blocks(engineered(family)), copied, strict=True):
        numbers = {name: one for part in own.modules() for name, one in vars(part).items() if isinstance(one, float)}
        assert numbers == {
            name: one for part in block.modules() for name, one in vars(part).items() if isinstance(one, float)
        }


@pytest.mark.parametrize("family", FAMILIES)
def test_part_saved(family: str, tmp_path: Path) -> None:
    """A part of the model is saved with weights of its own size, and the model goes on rescaled."""
    model = rescued(family)
    with told(0):
        body(model).save_pretrained(tmp_path)
        body(model).save_pretrained(tmp_path / "again")
    loaded = type(body(model)).from_pretrained(tmp_path, dtype=torch.float32).eval()
    truth = body(engineered(family))
    ids = torch.arange(3, 20)[None]
    with torch.inference_mode():
        torch.testing.assert_close(loaded(ids)[0], truth(ids)[0], rtol=1e-3, atol=1e-2)
    assert rescaled_of(model) is not None


def test_another_head() -> None:
    """The body put into another model gives hidden states of their own size; read from there it is taken back."""
    model = rescued("llama")
    config = copy.deepcopy(model.config)
    config.num_labels, config.pad_token_id = 3, 0
    plain = tf.LlamaForSequenceClassification(config).eval()
    truth = copy.deepcopy(plain)
    truth.model, plain.model = engineered("llama").model, model.model
    plain.score.to(torch.float16)
    ids = torch.arange(3, 20)[None]
    with torch.inference_mode(), told(0):
        expected = truth(ids).logits
        torch.testing.assert_close(plain(ids).logits.float(), expected, rtol=1e-2, atol=1e-2)
    with told(1):
        state = plain.state_dict()
    own = engineered("llama").model.state_dict()
    assert all(torch.allclose(state[f"model.{name}"].float(), one, **EXACT) for name, one in own.items())


def test_embeddings_handed_in() -> None:
    """What an embedding gives, called by itself, and what is computed from embeddings is of their own size."""
    for family in ("llama", "gemma2"):
        model, plain = rescued(family), engineered(family)
        ids = prompts(family, count=1, tokens=24, seed=3)[0]["input_ids"]
        with torch.inference_mode():
            expected, found = (one.get_input_embeddings()(ids) for one in (plain, model))
            torch.testing.assert_close(found.float(), expected, rtol=2e-3, atol=1e-3)
            truth = plain(inputs_embeds=expected).logits.log_softmax(-1)
            assert is_near(model(inputs_embeds=expected.to(model.dtype)).logits.float().log_softmax(-1), truth)


HOOKS: dict[str, Callable[[nn.Module, Callable[..., Any]], Any]] = {
    "after": lambda block, keep: block.register_forward_hook(lambda _, args, output: keep(output)),
    "before": lambda block, keep: block.register_forward_pre_hook(lambda _, args: keep(args[0])),
    "everywhere": lambda block, keep: torch_modules.register_module_forward_hook(
        lambda module, args, output: keep(output) if module is block else None
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("where", HOOKS)
def test_hidden_states_read(family: str, where: str) -> None:
    """What a hook reads is of its own size."""
    states: list[list[Tensor]] = [[], []]
    for model, kept in zip((engineered(family), rescued(family)), states, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SafeDtypeWarning)
            handle = HOOKS[where](
                blocks(model)[2], lambda one, kept=kept: kept.append(one[0] if isinstance(one, tuple) else one)
            )
            try:
                results(model, family)
            finally:
                handle.remove()
    assert len(states[1]) == len(states[0]) > 0
    for found, expected in zip(states[1], states[0], strict=True):
        assert float((found.float() - expected).norm() / expected.norm()) < 1e-2


def gradients(model: Any, family: str) -> dict[str, Tensor]:
    """Return the gradients of a loss, in float32."""
    batch = prompts(family, count=1, tokens=24, seed=3)[0]
    logits = model(**batch, use_cache=False).logits.float()
    logits.log_softmax(-1)[..., 7].mean().backward()
    return {name: one.grad.float().clone() for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluating"])
def test_gradients(family: str, training: bool) -> None:
    """Gradients are those of the model as it was, and after a step of an optimizer the weights are its, too."""
    plain, model = engineered(family).train(training), rescued(family).train(training)
    for one in (plain, model):
        for part in one.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
            if isinstance(getattr(part, "dropout", None), float):
                part.dropout = 0.0
    optimizers = [torch.optim.SGD(one.parameters(), lr=1e-3) for one in (plain, model)]
    expected = gradients(plain, family)
    is_left = training or bool(rescaled_of(model).fold.moved())
    with told(1 if is_left else 0):
        found = gradients(model, family)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert float((found[name] - value).norm()) <= 0.15 * float(value.norm()) + 1e-4, name
    if not is_left:
        return
    assert rescaled_of(model) is None
    for optimizer in optimizers:
        optimizer.step()
    assert is_near(results(model.eval(), family), results(plain.eval(), family))


def test_adapters_are_trained_as_before() -> None:
    """An adapter on frozen weights is trained without a word, and saved; its model's state dict has their own size."""
    model = rescued("llama")
    config = peft.LoraConfig(target_modules=["q_proj", "o_proj"], r=2)
    with told(0):
        adapted = peft.get_peft_model(model, config).train()
        adapted(torch.arange(3, 20)[None]).logits.float().square().mean().backward()
        state = adapted.state_dict()
        peft.get_peft_model_state_dict(adapted)
    assert rescaled_of(model) is not None
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.allclose(state[f"base_model.model.{name}"].float(), engineered("llama").get_parameter(name), **EXACT)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_cast_by_the_user(family: str, dtype: torch.dtype) -> None:
    """Cast by the user it computes what it did."""
    model, expected = rescued(family), results(engineered(family), family)
    with told(0):
        found = results(model.to(dtype), family)
    divergence = (expected.exp() * (expected - found)).sum(-1).mean()
    assert float(divergence) < (0.2 if dtype == torch.bfloat16 else 2e-3)


@pytest.mark.needs("torch>=2.13")  # torch 2.6 cannot compile the plain model, and its exports round otherwise
@pytest.mark.parametrize("way", ["compiled", "exported"])
def test_compiled(way: str) -> None:
    """It is compiled and exported as it is, rescaled."""
    model = rescued("llama")
    ids = torch.arange(3, 20)[None]
    with torch.inference_mode(mode=False), torch.no_grad(), told(0):
        expected = model(ids, use_cache=False).logits
        if way == "compiled":
            made = torch.compile(model, backend="eager")
        else:
            made = torch.export.export(model, (ids,), {"use_cache": False}, strict=False).module()
        torch.testing.assert_close(made(ids, use_cache=False).logits, expected, rtol=1e-2, atol=1e-2)
    assert rescaled_of(model) is not None


def test_saved_after_it_was_taken_back(tmp_path: Path) -> None:
    """What is saved then are plain weights, without a note of a rescale."""
    model = rescued("llama")
    with told(1):
        writers(model)[0].register_forward_hook(lambda *_: None)
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "safe_dtype_rescale.json").exists()
    loaded = tf.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    own = engineered("llama").named_parameters()
    assert all(torch.allclose(loaded.get_parameter(name), one, **EXACT) for name, one in own)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_trained_as_a_whole(family: str) -> None:
    """Training of all weights begins with the model as it was, also where no weight was moved."""
    model = rescued(family).train()
    with told(1):
        model(**prompts(family, count=1, tokens=24, seed=3)[0])
    assert rescaled_of(model) is None
    assert model.dtype == torch.float32
