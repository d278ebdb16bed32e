"""A guarded model on which nothing fails is a plain one: the same numbers, the same files, the same behaviour."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from guarding.generators import ARCHITECTURES, BOTH_ROWS, IDS, generate, generator
from guarding.generators import ONE_ROW as PROMPT
from tiny_models import TINY
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from safe_dtype import guard, report, unguard
from safe_dtype.models.recast import recast

BF16, FP32 = torch.bfloat16, torch.float32
# One a kind of layer and of cache: attention, sliding, experts, states, both, an encoder before the decoder, sounds.
KINDS = {"qwen3", "gemma3", "mixtral", "mamba", "zamba2", "t5", "llava", "whisper"}


def made(name: str, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """Return a seeded model of this name, and inputs for its forward."""
    if name in ARCHITECTURES:
        given = {"input_ids": IDS}
        return generator(name, dtype), given | ({"decoder_input_ids": IDS} if name in ("t5", "bart") else {})
    torch.manual_seed(0)
    model = TINY[name].make().eval()
    recast(model, {FP32}, dtype)
    given = TINY[name].inputs()
    return model, {key: one.to(dtype) if one.is_floating_point() else one for key, one in given.items()}


ALL = sorted({*ARCHITECTURES, *TINY})


def in_both_dtypes(names: Iterable[str]) -> list[Any]:
    """Return names with a dtype: each in bfloat16; in float32, where a guard has the least to do, of each kind one."""
    return [
        pytest.param(name, dtype, id=f"{name}-{dtype}".replace("torch.", ""), marks=marks)
        for name in sorted(names)
        for dtype, marks in ((BF16, ()), (FP32, () if name in KINDS else pytest.mark.slow))
    ]


def tensors(output: Any) -> list[torch.Tensor]:
    """Return every tensor in an output, in order, caches apart."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (tuple, list)):
        return [tensor for one in output for tensor in tensors(one)]
    return []


def assert_equal(mine: Any, theirs: Any) -> None:
    """Compare outputs bit for bit."""
    a, b = tensors(mine), tensors(theirs)
    assert len(a) == len(b) > 0
    for one, other in zip(a, b, strict=True):
        assert torch.equal(one, other) or torch.equal(one.isnan(), other.isnan())


@pytest.mark.parametrize(("name", "dtype"), in_both_dtypes(ALL))
def test_forward(name: str, dtype: torch.dtype) -> None:
    """Outputs are equal with and without gradients, as a tuple, and with all hidden states."""
    plain, given = made(name, dtype)
    model = guard(copy.deepcopy(plain))
    for options in ({}, {"return_dict": False}, {"output_hidden_states": True}):
        assert_equal(model(**given, **options), plain(**given, **options))
    with torch.inference_mode():
        assert_equal(model(**given), plain(**given))
    assert report(model).events == ()


@pytest.mark.parametrize(("name", "dtype"), in_both_dtypes(ARCHITECTURES))
def test_generate(name: str, dtype: torch.dtype) -> None:
    """Tokens, logits, scores and the random state are equal, greedy, sampling and with beams."""
    plain, model = generator(name, dtype), guard(generator(name, dtype))
    options = BOTH_ROWS if name != "rwkv" else {"input_ids": IDS}
    for more in ({}, {"do_sample": True}, {"num_beams": 2}):
        if name in ("rwkv", "recurrent_gemma") and "num_beams" in more:
            continue  # transformers cannot reorder their states
        mine, theirs = (generate(one, **options, **more, max_new_tokens=4) for one in (model, plain))
        assert mine.differs(theirs) == []
    assert report(model).events == ()


@pytest.mark.parametrize(
    ("name", "dtype"), in_both_dtypes({*ALL} - {"rwkv"})
)  # which plain cannot train with its cache
def test_training(name: str, dtype: torch.dtype) -> None:
    """Gradients are equal in training and, for those who train so, in evaluation mode."""

    def gradients(model: Any, given: dict[str, Any], *, training: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model.train(training)
        found = tensors(model(**given))[0]
        found.float().pow(2).sum().backward()
        return [one.grad for one in model.parameters() if one.grad is not None]

    for training in (True, False):
        plain, given = made(name, dtype)
        model = guard(copy.deepcopy(plain))
        mine = gradients(model, given, training=training)
        assert_equal(mine, gradients(plain, given, training=training))


@pytest.mark.parametrize("name", ALL)
def test_copies_and_files(name: str, tmp_path: Path) -> None:
    """Saved, loaded, copied, pickled and cast, a guarded model gives what a plain one gives."""
    plain, given = made(name, BF16)
    model = guard(copy.deepcopy(plain))
    wanted = plain(**given)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert_equal(copy.deepcopy(model)(**given), wanted)
    assert_equal(pickle.loads(pickle.dumps(model))(**given), wanted)
    torch.save(model, tmp_path / "model.pt")
    assert_equal(torch.load(tmp_path / "model.pt", weights_only=False)(**given), wanted)
    for one, folder in ((model, "mine"), (plain, "theirs")):
        one.save_pretrained(tmp_path / folder)
    mine, theirs = (sorted(one.name for one in (tmp_path / folder).iterdir()) for folder in ("mine", "theirs"))
    assert mine == theirs
    for file in mine:
        assert (tmp_path / "mine" / file).read_bytes() == (tmp_path / "theirs" / file).read_bytes()
    again = type(plain).from_pretrained(tmp_path / "mine")
    assert_equal(
        list(again.state_dict().values()), list(type(plain).from_pretrained(tmp_path / "theirs").state_dict().values())
    )
    wide = {key: one.float() if one.is_floating_point() else one for key, one in given.items()}
    assert_equal(model.float()(**wide), plain.float()(**wide))
    assert {one.dtype for one in model.half().parameters()} == {torch.float16}
    unguard(model)
    assert set(vars(model)) == set(vars(plain))


def test_embeddings_grow() -> None:
    """`resize_token_embeddings` works as ever."""
    model, plain = guard(generator()), generator()
    torch.manual_seed(0)
    model.resize_token_embeddings(120, mean_resizing=False)
    torch.manual_seed(0)
    plain.resize_token_embeddings(120, mean_resizing=False)
    assert_equal(model(IDS), plain(IDS))


def test_gradient_checkpointing() -> None:
    """Checkpointed training gives the same gradients."""
    found = []
    for model in (guard(generator()), generator()):
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()  # its name since 5.23
        model.train()(IDS, labels=IDS).loss.backward()
        found.append([one.grad for one in model.parameters()])
    assert_equal(*found)


@pytest.mark.filterwarnings("ignore")
def test_traced() -> None:
    """`torch.jit.trace` records the model and nothing of the guard."""
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    model = guard(copy.deepcopy(plain))
    given = torch.randn(2, 4)
    mine, theirs = torch.jit.trace(model, given), torch.jit.trace(plain, given)
    assert_equal(mine(given), theirs(given))
    assert str(mine.graph).count("aten::") == str(theirs.graph).count("aten::")


@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")
@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_exported(*, strict: bool) -> None:
    """`torch.export` makes the same graph."""
    plain = generator(dtype=FP32)
    model = guard(copy.deepcopy(plain))
    with torch.no_grad():
        graphs = [
            torch.export.export(one, (), {"input_ids": IDS, "use_cache": False}, strict=strict)
            for one in (model, plain)
        ]
    mine, theirs = ([node.target for node in graph.graph.nodes if node.op == "call_function"] for graph in graphs)
    assert [str(one) for one in mine] == [str(one) for one in theirs]
    torch.compiler.reset()


def test_without_numbers() -> None:
    """On the meta device and with fake tensors there is nothing to look at, and nothing is."""
    model = guard(generator().to("meta"))
    assert model(IDS.to("meta")).logits.is_meta
    real = guard(generator())
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert real(IDS).logits.shape == (2, 6, 97)
    assert report(model).events == report(real).events == ()


def test_under_autocast() -> None:
    """Autocast around a guarded float32 model gives what it gives around a plain one."""
    plain = generator(dtype=FP32)
    model = guard(copy.deepcopy(plain))
    with torch.autocast("cpu", BF16), torch.no_grad():
        assert_equal(model(IDS), plain(IDS))


def test_functional() -> None:
    """`torch.func` calls it with other parameters, and maps and differentiates it."""
    net = guard(nn.Linear(3, 2).eval())
    parameters = {name: one.detach() * 2 for name, one in net.named_parameters()}
    given = torch.randn(5, 3)
    once = torch.func.functional_call(net, parameters, (given,))
    assert torch.allclose(once, given @ parameters["weight"].T + parameters["bias"])
    jacobian = torch.func.jacrev(lambda one: torch.func.functional_call(net, parameters, (one,)))(given[0])
    assert torch.allclose(jacobian, parameters["weight"])


def test_hooks_of_the_user() -> None:
    """Hooks on the model run once a call, with what they returned in force."""
    model, calls = guard(generator()), []
    model.register_forward_pre_hook(lambda module, args: calls.append("before"))
    model.register_forward_hook(lambda module, args, output: calls.append("after"))
    model.lm_head.register_forward_hook(lambda module, args, output: output * 0)
    with torch.no_grad():
        assert not model(IDS).logits.any()
    assert calls == ["before", "after"]


def test_errors_are_the_callers() -> None:
    """A mistake of the caller is the very exception of plain transformers."""
    for call in (lambda one: one(), lambda one: one(IDS + 1000), lambda one: one.generate(IDS, max_new_tokens=-1)):
        outcomes = []
        for model in (guard(generator()), generator()):
            with pytest.raises(Exception) as caught:  # noqa: PT011  (whatever it is, it is compared)
                call(model)
            outcomes.append((type(caught.value), str(caught.value)))
        assert outcomes[0] == outcomes[1]


def test_threads() -> None:
    """Many threads generate at the same time."""
    model = guard(generator())
    truth = generator().generate(**PROMPT, max_new_tokens=5, do_sample=False)
    found: list[torch.Tensor] = []

    def work() -> None:
        found.extend(model.generate(**PROMPT, max_new_tokens=5, do_sample=False) for _ in range(3))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(found) == 12
    assert all(torch.equal(one, truth) for one in found)


def dispatched(model: Any) -> Any:
    """Have accelerate keep the weights away from the device between calls."""
    from accelerate import cpu_offload

    return cpu_offload(model, execution_device=torch.device("cpu"))


def adapted(model: Any) -> Any:
    """Put LoRA adapters in."""
    import peft

    torch.manual_seed(5)
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()


@pytest.mark.filterwarnings(
    "ignore:You are calling .generate.. with the `input_ids`"
)  # accelerate 1.10, of its own hooks
@pytest.mark.parametrize("wrap", [dispatched, adapted], ids=lambda one: one.__name__)
def test_wrapped_later(wrap: Callable[[Any], Any]) -> None:
    """A guarded model that is wrapped by another library works as a plain one does."""
    mine, theirs = wrap(guard(generator())), wrap(generator())
    options = {"input_ids": IDS, "max_new_tokens": 5, "do_sample": False}
    assert torch.equal(mine.generate(**options), theirs.generate(**options))


def test_trainer(tmp_path: Path) -> None:
    """The Trainer trains and evaluates a guarded model to the same loss."""
    rows = [{"input_ids": [3, 4, 5, 6], "labels": [3, 4, 5, 6]}] * 4
    losses = []
    for model in (guard(generator(dtype=FP32)), generator(dtype=FP32)):
        arguments = transformers.TrainingArguments(
            tmp_path, max_steps=2, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True, seed=1
        )
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)
        losses.append((trainer.train().training_loss, trainer.evaluate()["eval_loss"]))
    assert losses[0] == losses[1]
