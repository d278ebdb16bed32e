"""A rescaled model that is changed afterwards computes what the model as it was does after the same change."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from accelerate.hooks import ModelHook, add_hook_to_module
from engineered import KINDS, engineered, saved
from rescaling.folding.changes import FAMILIES, blocks, body, is_near, rescued, results, writers
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import safe_dtype
from safe_dtype.errors import SafeDtypeWarning
from safe_dtype.models.origin import keep_origin, origin_of
from safe_dtype.rescaling import rescaled_of

Change = Callable[[Any], Any]


def set_blocks(model: Any, modules: list[nn.Module]) -> None:
    """Put another stack in."""
    setattr(body(model), "block" if hasattr(model, "encoder") else "layers", nn.ModuleList(modules))


def other_weights(model: Any) -> dict[str, Tensor]:
    """Return the state dict of another checkpoint of the family."""
    made = type(model)(model.config)
    made.load_state_dict(reference(model).state_dict())
    random = torch.Generator().manual_seed(1)
    return {
        name: value * (1 + 0.05 * torch.randn(value.shape, generator=random)) if value.dim() > 1 else value
        for name, value in made.float().state_dict().items()
    }


def reference(model: Any) -> Any:
    """Return a plain model with the weights that `model` was made from."""
    return engineered(FAMILY_OF[type(model)])


FAMILY_OF: dict[type, str] = {
    tf.LlamaForCausalLM: "llama",
    tf.Qwen3ForCausalLM: "qwen3",
    tf.Gemma2ForCausalLM: "gemma2",
    tf.T5ForConditionalGeneration: "t5",
}


def block_of_another(model: Any, place: int) -> nn.Module:
    """Return a block of another checkpoint, in the dtype of `model`: weights beyond float16 are not among them."""
    made = reference(model)
    made.load_state_dict(other_weights(model))
    return copy.deepcopy(blocks(made)[place]).to(model.dtype)


def average_state_dicts(model: Any) -> None:
    """Load the mean of its own weights and another's."""
    own, others = model.state_dict(), other_weights(model)
    model.load_state_dict({name: (own[name].float() + others[name]) / 2 for name in own})


def average_in_place(model: Any) -> None:
    """Write the mean into the tensors of the state dict."""
    own, others = model.state_dict(), other_weights(model)
    for name, value in own.items():
        value.copy_((value.float() + others[name]) / 2)


def average_blocks(model: Any) -> None:
    """Write the mean of two blocks into one of them, as merging does."""
    for one, other in zip(blocks(model)[1].parameters(), blocks(model)[2].parameters(), strict=True):
        one.data.copy_((one.data + other.data) / 2)


def steer(model: Any) -> None:
    """Add a huge vector to what a block hands on."""
    vector = 500 * torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(2))

    def add(_module: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] + vector.to(output[0].dtype), *output[1:])
        return output + vector.to(output.dtype)

    blocks(model)[1].register_forward_hook(add)


def steer_before(model: Any) -> None:
    """Add it to what a block is given."""
    vector = 500 * torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(2))
    blocks(model)[2].register_forward_pre_hook(lambda _, args: (args[0] + vector.to(args[0].dtype), *args[1:]))


def resize(model: Any) -> None:
    """Resize the embeddings, with the same new rows for everybody."""
    model.resize_token_embeddings(model.config.vocab_size + 8, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[-8:] = 0.01
        model.get_output_embeddings().weight[-8:] = 0.01


def prune_writer(model: Any) -> None:
    """Prune half of a weight."""
    prune.l1_unstructured(writers(model)[1], "weight", 0.5)


def with_safetensors(model: Any) -> None:
    """Load a file of another checkpoint."""
    made = reference(model)
    made.load_state_dict(other_weights(model))
    with tempfile.TemporaryDirectory() as place:
        save_model(made, f"{place}/model.safetensors")
        load_model(model, f"{place}/model.safetensors", strict=False)


def own_value(model: Any, place: int) -> Tensor:
    """Return new values for a writer."""
    return writers(reference(model))[place].weight.detach() * 0.7


def write_data(model: Any) -> None:
    """Replace the tensor of a parameter."""
    weight = writers(model)[1].weight
    weight.data = own_value(model, 1).to(weight.dtype)


def write_in_place(model: Any) -> None:
    """Write values of the model's own size into it, behind autograd's back."""
    writers(model)[1].weight.data.copy_(own_value(model, 1))


def write_without_gradient(model: Any) -> None:
    """Write them where autograd sees it."""
    with torch.no_grad():
        writers(model)[1].weight.copy_(own_value(model, 1))


def new_parameter(model: Any) -> None:
    """Put another parameter in."""
    writer = writers(model)[1]
    writer.weight = nn.Parameter(own_value(model, 1).to(writer.weight.dtype))


def scale_weights(model: Any) -> None:
    """Multiply every writer in place."""
    for one in writers(model):
        one.weight.data.mul_(1.25)


def swap_blocks(model: Any) -> None:
    """Let two blocks change places."""
    stack = blocks(model)
    stack[1], stack[2] = stack[2], stack[1]


def repeat(model: Any) -> None:
    """Put a copy of a block after it, as depth up-scaling does."""
    blocks(model).insert(2, copy.deepcopy(blocks(model)[1]))


def reinitialize(model: Any) -> None:
    """Put a fresh linear module of the same size in place of a writer."""
    old = writers(model)[2]
    fresh = nn.Linear(old.in_features, old.out_features, bias=False, dtype=old.weight.dtype)
    with torch.no_grad():
        fresh.weight.copy_(torch.randn(fresh.weight.shape, generator=torch.Generator().manual_seed(5)) * 0.05)
    for module in blocks(model)[2].modules():
        for name, child in module.named_children():
            if child is old:
                setattr(module, name, fresh)


def steered(module: nn.Module) -> Callable[..., Any]:
    """Return the forward of a module with a huge vector added to what it returns."""
    forward = module.forward

    def added(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        if isinstance(output, tuple):
            return (output[0] + 500, *output[1:])
        return output + 500

    return added


def steer_in_forward(model: Any) -> None:
    """Put a forward that steers into a block."""
    blocks(model)[1].forward = steered(blocks(model)[1])


def steer_in_class(model: Any) -> None:
    """Give a block a class whose forward steers."""
    block = blocks(model)[1]
    forward = steered(block)
    block.__class__ = type("Steered", (type(block),), {"forward": lambda _, *args, **kwargs: forward(*args, **kwargs)})


class Steering(ModelHook):  # type: ignore[misc]  # accelerate has no types
    """A hook of accelerate, which takes the place of the forward."""

    def post_forward(self, _module: nn.Module, output: Any) -> Any:
        """Add to what is returned."""
        return (output[0] + 500, *output[1:]) if isinstance(output, tuple) else output + 500


def swap_tensors(model: Any) -> None:
    """Swap a weight with another tensor, as torch does on conversions."""
    weight = writers(model)[1].weight
    torch.utils.swap_tensors(weight, nn.Parameter(own_value(model, 1).to(weight.dtype)))


WARNED: dict[str, Change] = {
    "load_state_dict": lambda model: model.load_state_dict(other_weights(model)),
    "assigned": lambda model: model.load_state_dict(other_weights(model), assign=True),
    "safetensors": with_safetensors,
    "block loaded": lambda model: blocks(model)[1].load_state_dict(block_of_another(model, 1).state_dict()),
    "averaged": average_state_dicts,
    "averaged in place": average_in_place,
    "replaced": lambda model: blocks(model).__setitem__(1, block_of_another(model, 1)),
    "new stack": lambda model: set_blocks(model, [*blocks(model)][:3]),
    "deleted": lambda model: blocks(model).__delitem__(2),
    "popped": lambda model: blocks(model).pop(-1),
    "swapped": swap_blocks,
    "repeated": repeat,
    "repeated as it is": lambda model: set_blocks(model, [blocks(model)[one] for one in (0, 1, 1, 2, 3)]),
    "copies of all": lambda model: set_blocks(model, [copy.deepcopy(one) for one in blocks(model)] * 2),
    "appended": lambda model: blocks(model).append(block_of_another(model, 3)),
    "linear module": reinitialize,
    "hook": steer,
    "hook before": steer_before,
    "forward": steer_in_forward,
    "class": steer_in_class,
    "hook of accelerate": lambda model: add_hook_to_module(blocks(model)[1], Steering()),
    "tensors swapped": swap_tensors,
    "resized": resize,
    "pruned": prune_writer,
    "parametrized": lambda model: parametrizations.weight_norm(writers(model)[1]),
    ".data": write_data,
    ".data.copy_": write_in_place,
    "copy_": write_without_gradient,
    "parameter": new_parameter,
    ".data.mul_": scale_weights,
    "blocks averaged": average_blocks,
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", WARNED)
def test_changed(family: str, name: str) -> None:
    """Whatever is changed, the results are those of the float32 model with that change, and the user is warned once."""
    truth, model = engineered(family), rescued(family)
    WARNED[name](truth)
    expected = results(truth, family)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SafeDtypeWarning)
        WARNED[name](model)
        found = results(model, family)
    told = [str(one.message) for one in caught if issubclass(one.category, SafeDtypeWarning)]
    assert is_near(found, expected)
    assert len(told) == (0 if rescaled_of(model) is not None else 1), told
    assert all("is taken back" in one for one in told)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_bit_comes_back(family: str, tmp_path: Path) -> None:
    """Of a model that was loaded from files every weight is what it was there, in the dtype that its plan goes on in."""
    folder = saved(family, tmp_path)
    auto = KINDS[family].auto
    model = getattr(safe_dtype, f"Safe{auto.__name__}").from_pretrained(folder, dtype="float16")
    assert rescaled_of(model) is not None
    with pytest.warns(SafeDtypeWarning, match="is taken back"):
        blocks(model).append(copy.deepcopy(blocks(model)[1]))
    plain = auto.from_pretrained(folder, dtype=torch.float32)
    for name, one in plain.named_parameters():
        assert torch.equal(model.get_parameter(name).float(), one), name
    assert model.dtype in (torch.bfloat16, torch.float32)
    blocks(plain).append(copy.deepcopy(blocks(plain)[1]))
    assert is_near(results(model, family), results(plain.eval(), family))


def test_in_strict_mode(tmp_path: Path) -> None:
    """In strict mode the dtype stays, and what happens is said."""
    folder = saved("llama", tmp_path)
    model = safe_dtype.SafeAutoModelForCausalLM.from_pretrained(folder, dtype="float16")
    origin = origin_of(model)
    plan = replace(origin.plan, policy=replace(origin.plan.policy, mode="strict"))
    keep_origin(model, replace(origin, plan=plan))
    with pytest.warns(SafeDtypeWarning, match="stays in float16, where it may overflow: in strict mode"):
        model.state_dict()
    assert model.dtype == torch.float16


def test_a_generation_goes_on(tmp_path: Path) -> None:
    """A guarded model that is changed between two steps goes on from a cache that it filled before."""
    folder = saved("llama", tmp_path)
    model = safe_dtype.SafeAutoModelForCausalLM.from_pretrained(folder, dtype="float16")
    plain = tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.arange(3, 20)[None]
    found, expected = [], []
    for one, logits in ((model, found), (plain, expected)):
        with torch.inference_mode():
            cache = one(ids, use_cache=True).past_key_values
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SafeDtypeWarning)
                steer(one)
            logits.append(one(ids[:, :1], past_key_values=cache, use_cache=True).logits.float().log_softmax(-1))
    assert is_near(found[0], expected[0])
