"""A guard watches, steps down, tells, and goes without a trace."""

from __future__ import annotations

import copy
import io
import logging
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from guarding.oracle import Switch
from tiny_models import TINY
from torch import nn
from transformers import PreTrainedModel

from safe_dtype import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    NoDtypeLeft,
    SafeAutoModel,
    SafeDtypeWarning,
    guard,
    report,
    unguard,
)
from safe_dtype.devices import facts_of
from safe_dtype.errors import CannotResumeError, DeviceLostError, NotGuardedError, StrictModeError
from safe_dtype.facts import Kind
from safe_dtype.guarding import FailureKind
from safe_dtype.guarding.islands import CastInputs
from safe_dtype.guarding.recast import recast
from safe_dtype.testing import fault

IDS = torch.arange(3, 9)[None]
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
DOWN = "model.layers.1.mlp.down_proj"


def tiny(name: str = "qwen3", dtype: torch.dtype = BF16) -> Any:
    """Return a seeded tiny model in `dtype`, its unsaved buffers in float32."""
    torch.manual_seed(0)
    model = TINY[name].make().eval()
    recast(model, {FP32}, dtype)
    return model


class Spectral(nn.Module):
    """A plain network with an FFT, for which torch has no 16-bit kernel on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.mix = nn.Linear(8, 8)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Image (B, 3, H, 8) to features (B, 4, H, 8)."""
        features = self.mix(self.conv(image))
        return {"features": torch.fft.fft(features).real}


def test_plain_module() -> None:
    """Any module is guarded: a real missing kernel brings it to float32, with the result of float32."""
    torch.manual_seed(0)
    net = Spectral().eval().to(BF16)
    image = torch.randn(2, 3, 8, 8)
    wanted = copy.deepcopy(net).float()(image.to(BF16).float())["features"]
    assert guard(net) is net
    with torch.no_grad():
        found = net(image.to(BF16))["features"]
    assert torch.equal(found, wanted)
    (event,) = report(net).events
    assert (event.kind, event.before, event.after, event.step) == (FailureKind.OP_UNSUPPORTED, BFLOAT16, FLOAT32, 0)
    assert event.grown_bytes == 2 * sum(one.numel() for one in net.parameters())


@pytest.mark.parametrize("name", ["segformer", "bert"])
def test_encoders(name: str) -> None:
    """A model without a cache runs its one step again, and returns what it returns in float32."""
    model, given = tiny(name), TINY[name].inputs()
    last = [label for label, one in model.named_modules() if isinstance(one, nn.Linear)][-1]
    wanted = copy.deepcopy(model)
    recast(wanted, {BF16}, FP32)
    guard(model)
    given = {key: one.to(BF16) if one.is_floating_point() else one for key, one in given.items()}
    with torch.no_grad(), fault(model, last, "nan") as put:
        found = model(**given)
        truth = wanted(**{key: one.float() if one.is_floating_point() else one for key, one in given.items()})
    assert put.fired
    assert report(model).events[0].module == last
    for mine, theirs in zip(found.to_tuple(), truth.to_tuple(), strict=True):
        assert torch.equal(mine, theirs)


def test_without_a_trace() -> None:
    """After `unguard` the classes and the model hold the very objects they held before."""

    class Own(nn.Linear):
        pass

    unguard(guard(nn.Linear(1, 1)))  # lets go of what models of other tests, dead by now, have left
    before = {owner: dict(vars(owner)) for owner in (PreTrainedModel, transformers.GenerationMixin, nn.Module, Own)}
    model, net = tiny(), Own(2, 2)
    attributes = set(vars(model))
    guard(model)
    guard(net)
    guard(model, policy="strict")  # again: the old one is replaced
    assert PreTrainedModel.__dict__.get("__call__") is not before[PreTrainedModel].get("__call__")
    unguard(model)
    unguard(net)
    unguard(net)
    for owner, names in before.items():
        now = vars(owner)
        assert all(now[name] is names[name] for name in names)
        assert not {"__call__", "generate", "generate_batch", "get_compiled_call"} & (now.keys() - names.keys())
    assert set(vars(model)) == attributes


def test_guards_of_several_models() -> None:
    """Letting one model go leaves the guard of another in its place."""
    one, two = guard(tiny()), guard(tiny())
    unguard(one)
    with fault(two, DOWN, "nan"):
        two(input_ids=IDS)
    assert len(report(two).events) == 1
    with pytest.raises(NotGuardedError, match=r"safe_dtype\.guard"):
        report(one)
    unguard(two)


def test_report_reads() -> None:
    """The report says in a line what happened, where, and what it cost."""
    model = guard(tiny())
    with fault(model, DOWN, "cublas", call=2):
        model.generate(IDS, max_new_tokens=5)
    text = str(report(model))
    grown = sum(2 * one.numel() for one in model.parameters())
    assert text.startswith("Qwen3ForCausalLM in float32, 1 event\n")
    assert f"step 2: op_unsupported in {DOWN} (bfloat16) -> float32" in text
    assert f"{grown:+,} bytes]" in text


def test_log(caplog: pytest.LogCaptureFixture) -> None:
    """One record an event, readable as text and as fields."""
    model = guard(tiny())
    with fault(model, DOWN, "nan", call=1):
        model.generate(IDS, max_new_tokens=3)
    (record,) = [one for one in caplog.records if one.name.startswith("safe_dtype")]
    assert record.levelno == logging.WARNING
    assert "going on with float32" in record.getMessage()
    assert (record.kind, record.step, record.before, record.after) == ("nonfinite", 1, "bfloat16", "float32")


@pytest.mark.filterwarnings("ignore:.* was asked for, and on .* it is slow")
def test_warns_of_an_ordered_dtype(tmp_path: Path) -> None:
    """A dtype that was asked for and fails is warned of once, with both names."""
    model = SafeAutoModel.from_pretrained(
        TINY["qwen3"].save(tmp_path, BF16), dtype=BF16, policy="ladder=bf16>fp16>fp32"
    )
    with (
        fault(model, DOWN, "cublas"),
        fault(model, DOWN, "cublas", dtype=FLOAT16),
        pytest.warns(SafeDtypeWarning, match=r"bfloat16 was asked for.*Going on in float16") as warned,
    ):
        model.generate(IDS, max_new_tokens=2)
    assert len([one for one in warned if "asked for" in str(one.message)]) == 1
    assert [event.after for event in report(model).events] == [FLOAT16, FLOAT32]


def test_strict_changes_nothing() -> None:
    """In strict mode the failure is an error that names what would work; the model stays as it is."""
    model = guard(tiny(), policy="strict")
    with fault(model, DOWN, "cublas"), pytest.raises(StrictModeError, match="Would work: float32") as caught:
        model.generate(IDS, max_new_tokens=2)
    assert "CUBLAS" in str(caught.value.__cause__)
    with fault(model, DOWN, "nan"), pytest.raises(StrictModeError, match=f"nonfinite in {DOWN}"):
        model.generate(IDS, max_new_tokens=2)
    assert {one.dtype for one in model.parameters()} == {BF16}
    assert report(model).events == ()


def test_no_dtype_left() -> None:
    """Where float32 fails as well the error carries every attempt, its cause, and the model can be used."""
    model = guard(tiny())
    with (
        fault(model, DOWN, "cublas"),
        fault(model, DOWN, "cublas", dtype=FLOAT32),
        pytest.raises(NoDtypeLeft) as caught,
    ):
        model.generate(IDS, max_new_tokens=2)
    (attempt,) = caught.value.attempts
    assert attempt.remedy == "float32"
    assert "applied, and then: CUDA error" in attempt.outcome
    assert isinstance(caught.value.__cause__, RuntimeError)
    model.generate(IDS, max_new_tokens=2)


def test_float32_has_nothing_below() -> None:
    """A failure in float32 is no matter of dtypes: the exception comes through as it is, and so does a NaN."""
    model = guard(tiny(dtype=FP32))
    with fault(model, DOWN, "cublas", dtype=FLOAT32), pytest.raises(RuntimeError, match=r"^CUDA error: CUBLAS"):
        model.generate(IDS, max_new_tokens=2)
    with fault(model, DOWN, "nan", dtype=FLOAT32):
        assert model(input_ids=IDS).logits.isnan().any()
        assert model(input_ids=IDS).logits.isnan().any()
    (event,) = report(model).events
    assert (event.kind, event.after, event.module) == (FailureKind.NONFINITE, None, DOWN)


@pytest.mark.parametrize("kind", ["out_of_memory", "shape"])
def test_others_come_through(kind: str) -> None:
    """What another dtype does not cure is raised as it was, and nothing has changed."""
    model = guard(tiny())
    with fault(model, DOWN, kind) as put, pytest.raises(RuntimeError) as caught:
        model.generate(IDS, max_new_tokens=2)
    assert put.fired == 1
    assert caught.value.__cause__ is None
    assert report(model).events == ()
    assert model.dtype == BF16


def test_the_callers_own_nan() -> None:
    """A NaN that is given is given back: it is not the dtype's."""
    model = guard(tiny())
    embedded = torch.full((1, 3, 32), torch.nan, dtype=BF16)
    assert model(inputs_embeds=embedded).logits.isnan().all()
    assert report(model).events == ()


def test_padding_may_be_anything() -> None:
    """A NaN at a padded position of an encoder is nobody's business; at a real one it is."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2).to(BF16)

        def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.linear(hidden).masked_fill(attention_mask[..., None] == 0, torch.nan)

    net = guard(Net().eval())
    net(torch.ones(1, 3, 2, dtype=BF16), attention_mask=torch.tensor([[1, 1, 0]]))
    assert report(net).events == ()
    with pytest.raises(NoDtypeLeft), fault(net, "linear", "nan"), fault(net, "linear", "nan", dtype=FLOAT32):
        net(torch.ones(1, 3, 2, dtype=BF16), attention_mask=torch.tensor([[1, 1, 0]]))


@torch.no_grad()
def test_finite_and_wrong() -> None:
    """T5 clamps in float16 and returns finite nonsense, 44 % off: the pinned block is found, float32 is right."""
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=97, d_model=32, d_kv=8, d_ff=64, num_layers=3, num_heads=4)
    model = transformers.T5ForConditionalGeneration(config).eval()
    for block in model.encoder.block:
        block.layer[1].DenseReluDense.wi.weight.mul_(1000)
        block.layer[1].DenseReluDense.wo.weight.mul_(3000)
    given = {"input_ids": IDS, "decoder_input_ids": IDS}
    truth = model(**given).logits

    def error(other: Any) -> float:
        found = other(**given).logits.float()
        assert found.isfinite().all()
        return float((found - truth).norm() / truth.norm())

    assert error(copy.deepcopy(model).half()) > 0.1
    guarded = guard(model.half())
    assert error(guarded) < 0.01
    (event,) = report(guarded).events
    assert (event.kind, event.before, event.after) == (FailureKind.NONFINITE, FLOAT16, FLOAT32)
    assert event.module == "encoder.block.0"
    assert "pinned" in event.message


def test_a_loss_of_nothing_is_nan() -> None:
    """The mean over no labels is NaN, in any dtype; the logits are what counts."""
    model = guard(tiny())
    with torch.no_grad():
        assert model(input_ids=IDS, labels=torch.full_like(IDS, -100)).loss.isnan()
    assert report(model).events == ()


def test_training_is_left_alone() -> None:
    """In training mode a failure comes through, and a NaN too."""
    model = guard(tiny()).train()
    with fault(model, DOWN, "cublas"), pytest.raises(RuntimeError, match="CUBLAS"):
        model(input_ids=IDS)
    with fault(model, DOWN, "nan"):
        assert model(input_ids=IDS, labels=IDS).loss.isnan()
    assert report(model).events == ()


def test_training_equals_plain() -> None:
    """Gradients and updates of a guarded model are those of a plain one, bit for bit."""

    def trained(model: Any) -> list[torch.Tensor]:
        optimizer = torch.optim.AdamW(model.train().parameters(), 1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            model(input_ids=IDS, labels=IDS).loss.backward()
            optimizer.step()
        return list(model.parameters())

    for mine, theirs in zip(trained(guard(tiny())), trained(tiny()), strict=True):
        assert torch.equal(mine, theirs)


def test_deep_copies_are_guarded() -> None:
    """A copy has a guard of its own: what happens to one does not happen to the other."""
    model = guard(tiny())
    copied = copy.deepcopy(model)
    with fault(copied, DOWN, "nan"):
        copied.generate(IDS, max_new_tokens=2)
    assert (len(report(copied).events), len(report(model).events)) == (1, 0)
    assert (copied.dtype, model.dtype) == (FP32, BF16)
    part = copy.deepcopy(model.model)
    with pytest.raises(NotGuardedError):
        report(part)


def test_pickles_carry_nothing_of_ours() -> None:
    """A pickled model and one of `torch.save` name no module of safe_dtype, and load as plain models."""
    model = guard(tiny())
    file = io.BytesIO()
    torch.save(model, file)
    for raw in (pickle.dumps(model), file.getvalue()):
        assert b"safe_dtype." not in raw
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(input_ids=IDS).logits, model(input_ids=IDS).logits)
    with pytest.raises(NotGuardedError):
        report(again)
    assert not any("safe_dtype" in name for name in model.state_dict())


def test_one_thread_changes_the_other_waits() -> None:
    """Two threads generate with one model when it fails: it is changed once, and both go on."""
    model = guard(tiny())
    wanted = tiny()
    Switch(wanted, 3, FLOAT32)
    truth = wanted.generate(IDS, max_new_tokens=12, do_sample=False)
    found: dict[int, Any] = {}

    def generate(index: int) -> None:
        found[index] = model.generate(IDS, max_new_tokens=12, do_sample=False)

    with fault(model, DOWN, "cublas", call=6) as put:
        threads = [threading.Thread(target=generate, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert put.fired in (1, 2)
    assert len(report(model).events) == 1
    assert set(found) == {0, 1}
    assert all(one.shape == truth.shape for one in found.values())


def test_two_threads_at_the_same_step() -> None:
    """Both fail at the same time, in the middle of the same step: the second finds the model changed."""
    model = guard(tiny())
    wanted = tiny()
    Switch(wanted, 2, FLOAT32)
    truth = wanted.generate(IDS, max_new_tokens=6, do_sample=False)
    together = threading.Barrier(2)
    calls = threading.local()

    def fail(module: Any, args: Any) -> None:
        calls.count = getattr(calls, "count", 0) + 1
        if module.weight.dtype == BF16 and calls.count > 2:
            together.wait(30)
            raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'BFloat16'")

    model.get_submodule(DOWN).register_forward_pre_hook(fail)
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(model.generate(IDS, max_new_tokens=6, do_sample=False)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 2
    assert all(torch.equal(one, truth) for one in found)
    assert len(report(model).events) == 1


@pytest.mark.filterwarnings("ignore:.* was asked for, and on .* it is slow")
def test_sticky_failures_are_remembered(tmp_path: Path) -> None:
    """A lost device is a clear error, and the next plan for it rejects the dtype until it is measured anew."""
    folder = TINY["qwen3"].save(tmp_path, BF16)
    model = guard(transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=BF16))
    with fault(model, DOWN, "sticky"), pytest.raises(DeviceLostError, match="Next: start again"):
        model.generate(IDS, max_new_tokens=2)
    verdict = facts_of("cpu").verdict(BFLOAT16)
    assert verdict.kind is Kind.CRASHES
    assert "lost the device" in verdict.reason
    with pytest.warns(SafeDtypeWarning, match="Loading float32 instead"):
        assert SafeAutoModel.from_pretrained(folder, dtype=BF16).dtype == FP32
    assert facts_of("cpu", refresh=True).verdict(BFLOAT16).kind is not Kind.CRASHES


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
    (event,) = report(model).events
    assert (event.kind, event.remedy) == (FailureKind.DTYPE_MISMATCH, "inputs cast to the model's dtype")
    assert {one.dtype for one in model.parameters()} == {BF16}


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
        guard(model.base_model.model)
        with fault(model, "base_model.model.model.layers.1.mlp.gate_proj", "cublas") as put:
            assert torch.equal(model.generate(input_ids=IDS, max_new_tokens=5, do_sample=False), truth)
        assert put.fired == 1
        assert {one.dtype for one in model.parameters()} == {FP32}
        assert len(report(model).events) == 1


def test_unknown_state_is_not_guessed() -> None:
    """A call that continues from a state of an unknown class is refused clearly, with the model cured."""

    class OwnCache(transformers.DynamicCache):
        pass

    model = guard(tiny())
    with fault(model, DOWN, "cublas"), pytest.raises(CannotResumeError, match="call again; the model is in float32"):
        model(input_ids=IDS, past_key_values=OwnCache())
    model(input_ids=IDS, past_key_values=OwnCache())


def test_continuous_batching() -> None:
    """Requests of a continuous batch go on from the tokens they had, in a new pool."""
    prompts = [[5, 6, 7], [9, 10, 11, 12], [3, 4]]
    config = transformers.GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=-1, pad_token_id=0)
    # By itself the pool takes most of the memory.
    small = transformers.ContinuousBatchingConfig(num_blocks=64, block_size=32, max_batch_tokens=64)
    model, plain, wide = guard(tiny()), tiny(), tiny()
    recast(wide, {BF16}, FP32)
    with fault(model, DOWN, "cublas", call=4) as put:
        found = model.generate_batch(prompts, config, continuous_batching_config=small)
    assert put.fired == 1
    (event,) = report(model).events
    assert (event.kind, event.after) == (FailureKind.OP_UNSUPPORTED, FLOAT32)
    begun = plain.generate_batch(prompts, config, continuous_batching_config=small)
    for index, prompt in enumerate(prompts):
        one = found[f"req_{index}"]
        assert one.error is None
        assert one.prompt_ids == prompt
        had = one.generated_tokens[: event.step]
        assert had == begun[f"req_{index}"].generated_tokens[: event.step]
        rest = wide.generate(torch.tensor([[*prompt, *had]]), max_new_tokens=8 - event.step, do_sample=False)
        assert rest[0, len(prompt) :].tolist() == one.generated_tokens


def test_compiled_decode() -> None:
    """The compiled decode of a static cache is watched from outside: a NaN inside it is found and cured."""
    from transformers import CompileConfig

    options = {
        "max_new_tokens": 8, "do_sample": False, "cache_implementation": "static",
        "compile_config": CompileConfig(backend="eager", fullgraph=True, dynamic=False),
    }  # fmt: skip
    model, plain = guard(tiny()), tiny()
    model._valid_auto_compile_criteria = lambda *_: True  # on a CPU transformers compiles only where asked to

    class Poison(nn.Linear):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            out = super().forward(hidden)
            return out + torch.nan if hidden.dtype == BF16 and hidden.shape[1] == 1 else out

    model.model.layers[1].mlp.down_proj.__class__ = Poison
    Switch(plain, 1, FLOAT32)
    truth = plain.generate(IDS, max_new_tokens=8, do_sample=False, cache_implementation="static", disable_compile=True)
    found = model.generate(IDS, **options)
    assert torch.equal(found, truth)
    assert [event.kind for event in report(model).events] == [FailureKind.NONFINITE]
    torch.compiler.reset()


class Square(nn.Module):
    """Overflows float16 between its two linear layers, though all its weights and inputs are small."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.last = nn.Linear(8, 8)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states (B, 8) to the same shape."""
        grown = self.first(hidden) * 3e4
        return self.last(grown * grown * 1e-8)


def compiled(net: nn.Module, how: str) -> Any:
    """Compile `net` in one of the ways that users have."""
    if how == "wrapped":
        return torch.compile(net, backend="eager")
    if how == "in-place":
        net.compile(backend="eager")
    else:
        net.forward = torch.compile(net.forward, backend="eager")  # type: ignore[method-assign]
    return net


@pytest.mark.parametrize("how", ["wrapped", "in-place", "forward"])
def test_what_the_caller_compiled(how: str) -> None:
    """A model that the caller compiled is guarded from outside, blamed by module, and compiled again in float32."""
    torch.manual_seed(0)
    net = Square().eval().half()
    given = torch.randn(2, 8).half()
    truth = copy.deepcopy(net).float()(given.float())
    model = guard(compiled(net, how))
    with torch.no_grad():
        assert torch.equal(model(given), truth)
    (event,) = report(model).events
    assert (event.kind, event.after) == (FailureKind.NONFINITE, FLOAT32)
    assert event.largest_input is not None
    assert event.largest_input < FLOAT16.largest
    torch.compiler.reset()


def test_inside_a_compiled_graph() -> None:
    """Compiled after it was guarded, a model makes one whole graph: the guard is not in it."""
    model = guard(tiny())
    graph = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(graph(input_ids=IDS).logits, model(input_ids=IDS).logits)
    torch.compiler.reset()
