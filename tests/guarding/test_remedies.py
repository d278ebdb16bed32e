"""What is tried, by what went wrong: islands, another attention, alignment."""

from __future__ import annotations

import copy
from typing import Any

import torch
from guarding.generators import DOWN, tiny
from tiny_models import TINY

from safe_dtype import BFLOAT16, FLOAT32, guard, report
from safe_dtype.guarding import FailureKind
from safe_dtype.models.islands import CastInputs
from safe_dtype.models.recast import recast
from safe_dtype.testing import fault

IDS = torch.arange(3, 9)[None]
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def test_island() -> None:
    """Where the policy allows islands, only the module that failed goes to float32."""
    model = guard(tiny(), policy="auto,islands")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1e3)
    with fault(model, DOWN, "nan", call=1) as put:
        model.generate(IDS, max_new_tokens=4)
    (event,) = report(model).events
    assert put.fired
    assert (event.remedy, event.module, event.after) == ("the module in float32", DOWN, BFLOAT16)
    assert {name for name, one in model.named_parameters() if one.dtype == FP32} == {f"{DOWN}.weight"}
    copied = copy.deepcopy(model)
    assert torch.equal(copied(input_ids=IDS).logits, model(input_ids=IDS).logits)


def test_an_island_that_is_overtaken() -> None:
    """A report of a model that is in float32 as a whole lists no island any more."""
    model = guard(tiny(), policy="auto,islands")
    with fault(model, DOWN, "nan"):
        model(input_ids=IDS)
    assert report(model).islands == (DOWN,)
    with fault(model, "lm_head", "nan"):
        model(input_ids=IDS)
    assert (report(model).dtype, report(model).islands) == (FLOAT32, ())


def test_no_island_of_tied_weights() -> None:
    """A head tied to the embedding cannot be an island: the model goes to float32 instead."""
    model = guard(tiny(), policy="auto,islands")
    with fault(model, "lm_head", "nan"):
        model.generate(IDS, max_new_tokens=2)
    assert [(event.remedy, event.module) for event in report(model).events] == [("float32", "lm_head")]


def test_another_attention_first() -> None:
    """A kernel that wants a newer device costs no dtype where another attention does without it."""
    model = guard(tiny())
    assert model.config._attn_implementation == "sdpa"

    def only_eager(module: Any, args: Any, kwargs: Any) -> None:
        if module.config._attn_implementation != "eager":
            raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")

    model.model.layers[1].self_attn.register_forward_pre_hook(only_eager, with_kwargs=True)
    model.generate(IDS, max_new_tokens=3)
    (event,) = report(model).events
    assert (event.kind, event.remedy, event.after) == (FailureKind.KERNEL_ARCH, "eager attention", BFLOAT16)


def test_inputs_of_another_dtype() -> None:
    """Float32 inputs of a bfloat16 model are cast, now and from then on; the model stays."""
    model = guard(tiny("segformer"))
    image = TINY["segformer"].inputs()["pixel_values"].float()
    wanted = copy.deepcopy(model)(image.to(BF16)).logits
    assert torch.equal(model(image).logits, wanted)
    assert torch.equal(model(image).logits, wanted)
    assert report(model).events == ()
    assert {one.dtype for one in model.parameters()} == {BF16}


def test_inputs_of_another_dtype_in_strict_mode() -> None:
    """What a processor returns is no reason to refuse: nothing of the model changes."""
    model = guard(tiny("segformer"), policy="strict")
    image = TINY["segformer"].inputs()["pixel_values"].float()
    assert torch.equal(model(image).logits, copy.deepcopy(model)(image.to(BF16)).logits)
    assert report(model).refusals == ()


def test_what_fails_behind_the_inputs() -> None:
    """What fails once the inputs are cast is an event of its own, and they are none."""
    model = guard(tiny("segformer"))
    image = TINY["segformer"].inputs()["pixel_values"].float()
    with fault(model, "decode_head.classifier", "mismatch"):
        assert model(image).logits.isfinite().all()
    events = report(model).events
    assert {event.module for event in events} == {"decode_head.classifier"}
    assert (events[0].remedy, events[-1].after) == ("inputs of the module cast to its weights' dtype", FLOAT32)


def test_embeddings_of_another_dtype() -> None:
    """`inputs_embeds` in float32 go into a bfloat16 model, and generation gives what bfloat16 ones give."""
    model = guard(tiny())
    embedded = model.get_input_embeddings()(IDS).detach()
    wanted = tiny().generate(inputs_embeds=embedded, max_new_tokens=5, do_sample=False)
    found = model.generate(inputs_embeds=embedded.float(), max_new_tokens=5, do_sample=False)
    assert torch.equal(found, wanted)
    assert model.dtype == BF16


def test_a_float32_part() -> None:
    """A vision tower in float32 feeds a bfloat16 language model: the module in between aligns what it is given."""
    model = tiny("llava")
    recast(model.model.vision_tower, {BF16}, FP32)
    guard(model)
    given = TINY["llava"].inputs()
    with torch.no_grad():
        model(**given)
    kinds = {event.kind for event in report(model).events}
    assert kinds == {FailureKind.DTYPE_MISMATCH}
    assert model.model.language_model.dtype == BF16


def test_useless_hooks_are_taken_off() -> None:
    """An alignment that did not help is undone before the next remedy."""
    model = guard(tiny())
    with fault(model, DOWN, "mismatch"):
        model(input_ids=IDS)
    assert [event.remedy for event in report(model).events] == [
        "inputs of the module cast to its weights' dtype", "float32",
    ]  # fmt: skip
    hooks = [hook for one in model.modules() for hook in one._forward_pre_hooks.values()]
    assert not any(isinstance(hook, CastInputs) for hook in hooks)


def test_lora_on_a_16_bit_base() -> None:
    """Float32 adapters on a bfloat16 base: base and adapters go on together, guarded from outside or from within."""
    from peft import LoraConfig, get_peft_model

    def adapted() -> Any:
        torch.manual_seed(1)
        model = get_peft_model(tiny(), LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False))
        return model.eval()

    wanted = adapted()
    recast(wanted, {BF16}, FP32)
    truth = wanted.generate(input_ids=IDS, max_new_tokens=5, do_sample=False)
    for model in (guard(adapted()), adapted()):
        inner = guard(model.base_model.model)
        with fault(model, "base_model.model.model.layers.1.mlp.gate_proj", "cublas") as put:
            assert torch.equal(model.generate(input_ids=IDS, max_new_tokens=5, do_sample=False), truth)
        assert put.fired
        assert {one.dtype for one in model.parameters()} == {FP32}
        assert len(report(inner).events) == 1  # the nearest guard, of the model that generates
