"""A weight that changes after it was laid out is multiplied as it is, and no change is ever lost."""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import accelerate
import peft
import pytest
import torch
from numerics.laid_out import IDS, load, logits, near, save
from torch import Tensor, nn

from safe_dtype.models.block_layout import blocks_of, lay_out

pytestmark = pytest.mark.needs("pagemap")


BF16 = torch.bfloat16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a tied Qwen3 is saved."""
    return save("qwen3-tied", tmp_path_factory.mktemp("qwen3"))


def first(model: Any) -> nn.Linear:
    """Return one linear module."""
    return model.model.layers[0].mlp.up_proj


def _no_grad(change: Callable[[Any], object]) -> Callable[[Any], None]:
    def changed(model: Any) -> None:
        with torch.no_grad():
            change(model)

    return changed


WHOLE: dict[str, Callable[[Any], None]] = {
    "in-place": _no_grad(lambda model: first(model).weight.mul_(-1)),
    "data-in-place": lambda model: first(model).weight.data.mul_(-1),
    "data-added-to": lambda model: setattr(first(model).weight, "data", first(model).weight.data.mul_(-1)),
    "data-copied-to": lambda model: first(model).weight.data.copy_(torch.ones(640, 512)),
    "detached": lambda model: first(model).weight.detach().mul_(-1),
    "data-replaced": lambda model: setattr(first(model).weight, "data", -first(model).weight.data),
    "parameter-replaced": lambda model: setattr(first(model), "weight", nn.Parameter(-first(model).weight.data)),
    "state-loaded": lambda model: first(model).load_state_dict({"weight": torch.ones(640, 512)}),
    "state-assigned": lambda model: first(model).load_state_dict({"weight": torch.ones(640, 512, dtype=BF16)}, assign=True),
    "optimizer": lambda model: _step(first(model).weight),
    "tied-table": lambda model: model.model.embed_tokens.weight.data.mul_(-1),
    "storage-written": lambda model: first(model).weight.data.view(-1).view(torch.int16).fill_(1),
    "shared-and-written": lambda model: first(model).weight.share_memory_().data[:].mul_(-1),
    "swapped": lambda model: torch.utils.swap_tensors(first(model).weight, nn.Parameter(torch.ones(640, 512, dtype=BF16))),
    "negated-view": lambda model: setattr(first(model).weight, "data", torch._neg_view(first(model).weight.data)),
    "untied": lambda model: setattr(model.lm_head, "weight", nn.Parameter(-model.lm_head.weight.data)),
    "gradients-off": lambda model: first(model).weight.requires_grad_(False).mul_(-1),
    "initialized": _no_grad(lambda model: nn.init.ones_(first(model).weight)),
    "foreach": _no_grad(lambda model: torch._foreach_mul_([first(model).weight, model.lm_head.weight], -1)),
}  # fmt: skip


PARTS: dict[str, Callable[[Any], object]] = {
    "one-row": lambda model: first(model).weight.data[3].fill_(1),
    "the-first-number": lambda model: first(model).weight.data[0, 0].fill_(100),
    "the-last-number": lambda model: first(model).weight.data[639, 511].fill_(100),
    "one-column": lambda model: first(model).weight.data[:, 5].fill_(1),
    "a-row-through-numpy": lambda model: _bits(first(model).weight).__setitem__(7, 16256),
    "a-row-of-an-alias": lambda model: torch.as_tensor(first(model).weight.detach()[600:]).fill_(1),
    "a-token": lambda model: model.model.embed_tokens.weight.data[5].fill_(1),
    "a-token-of-the-head": lambda model: model.lm_head.weight.data[5].fill_(1),
    "a-new-token": lambda model: model.get_input_embeddings().weight.data[999].fill_(1),
}


def _bits(weight: Tensor) -> Any:
    return weight.detach().view(torch.int16).numpy()


def _step(weight: nn.Parameter) -> None:
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], lr=1.0).step()


@pytest.mark.parametrize("rows", [1, 20], ids=["few-rows", "many-rows"])
@pytest.mark.parametrize("change", (WHOLE | PARTS).values(), ids=WHOLE | PARTS)
def test_a_changed_weight_is_used(change: Callable[[Any], None], rows: int, folder: Path) -> None:
    """However the weight is changed, outputs are those of a plain model with the changed weight."""
    model, plain = load(folder), load(folder)
    lay_out(model)
    logits(model, rows)
    change(model)
    change(plain)
    assert near(logits(model, rows), logits(plain, rows))


@pytest.mark.parametrize("rows", [1, 3, 8, 9, 20])
@pytest.mark.parametrize("change", PARTS.values(), ids=PARTS)
def test_a_change_of_a_part_is_seen_by_the_next_call(change: Callable[[Any], None], rows: int, folder: Path) -> None:
    """Whatever its length, and after calls that have looked at the weight before."""
    model = load(folder)
    lay_out(model)
    model.generate(IDS, max_new_tokens=2, do_sample=False)
    original = {name: one.detach().clone() for name, one in model.named_parameters()}
    change(model)
    with torch.no_grad():
        model(input_ids=IDS[:, :rows], logits_to_keep=1)
    changed = [one for name, one in model.named_parameters() if not torch.equal(one, original[name])]
    assert len(changed) == 1
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight is changed[0]:
            assert blocks_of(module) is None


def test_a_spare_row_becomes_a_token(folder: Path) -> None:
    """A row that is written between two steps is embedded, and counts for the logits, in a call of three tokens."""
    model, plain, ids = load(folder), load(folder), torch.tensor([[4, 5, 999]])
    lay_out(model)
    for one in (model, plain):
        one.generate(IDS, max_new_tokens=3, do_sample=False)
        one.get_input_embeddings().weight.data[999] = 1.0
    with torch.no_grad():
        assert torch.equal(model.get_input_embeddings()(ids), plain.get_input_embeddings()(ids))
        found, expected = (float(one(ids).logits[0, -1, 999]) for one in (model, plain))
    assert found == pytest.approx(expected, rel=0.02)


def _write_to_head(model: Any, *_: object) -> None:
    model.lm_head.weight.data[5].fill_(1)


def test_a_write_in_the_middle_of_a_step(folder: Path) -> None:
    """A hook that writes to a weight that is multiplied later in the same step is not too late."""
    model, plain = load(folder), load(folder)
    lay_out(model)
    logits(model)
    for one in (model, plain):
        one.model.norm.register_forward_hook(functools.partial(_write_to_head, one))
    for rows in (1, 20):
        found, expected = logits(model, rows)[..., 5].float(), logits(plain, rows)[..., 5].float()
        assert torch.allclose(found, expected, rtol=0.05, atol=0.5)


@pytest.mark.parametrize("rows", [1, 20], ids=["few-rows", "many-rows"])
def test_another_thread_writes(rows: int, folder: Path) -> None:
    """What another thread has written is seen."""
    model, plain = load(folder), load(folder)
    lay_out(model)
    logits(model, rows)
    thread = Thread(target=PARTS["one-column"], args=(model,))
    thread.start()
    thread.join()
    PARTS["one-column"](plain)
    assert near(logits(model, rows), logits(plain, rows))


def test_blocks_of_a_changed_weight_are_let_go(folder: Path) -> None:
    """Blocks that fit no more are no burden to memory."""
    model = load(folder)
    attributes = set(vars(first(model)))
    lay_out(model)
    tables = [weakref.ref(blocks_of(one).tensor) for one in (first(model), model.lm_head)]
    first(model).weight.data.mul_(-1)
    logits(model)
    assert set(vars(first(model))) == attributes
    assert [table() is None for table in tables] == [True, False]


def test_a_changed_row_of_an_output_head_counts(tmp_path: Path) -> None:
    """An output head that is asked for the last position only, and tied to nothing, notices a changed row as well."""
    model = load(save("qwen3-untied", tmp_path))
    lay_out(model)
    with torch.no_grad():
        model(input_ids=IDS, logits_to_keep=1)
        model.lm_head.weight.data[5].fill_(9)
        found = model(input_ids=IDS, logits_to_keep=1).logits[0, -1]
        hidden = model.model(input_ids=IDS).last_hidden_state[0, -1]
    assert float(found[5]) == pytest.approx(float(9 * hidden.double().sum()), rel=0.02)


@pytest.mark.parametrize("cut", [lambda one: one[:100], lambda one: one[:, :512].t()[:512].t()], ids=["rows", "view"])
def test_a_weight_cut_in_place(cut: Callable[[Tensor], Tensor], folder: Path) -> None:
    """A weight that becomes a part of itself, at the same address, has other blocks."""
    model, plain, x = load(folder), load(folder), torch.randn(3, 512, dtype=BF16)
    lay_out(model)
    for one in (model, plain):
        first(one).weight.data = cut(first(one).weight.data)
    with torch.no_grad():
        found, expected = first(model)(x), first(plain)(x)
    assert found.shape == expected.shape
    assert torch.allclose(found.float(), expected.float(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_a_model_that_is_cast(dtype: torch.dtype, folder: Path) -> None:
    """After `model.to(dtype)` the cast weights are multiplied, bit for bit as in a plain model."""
    model, plain = load(folder), load(folder)
    lay_out(model)
    assert torch.equal(logits(model.to(dtype)), logits(plain.to(dtype)))


def test_tokens_are_added(folder: Path) -> None:
    """`resize_token_embeddings` makes new tables, which are used."""
    model, plain = load(folder), load(folder)
    lay_out(model)
    for one in (model, plain):
        one.resize_token_embeddings(1010, mean_resizing=False)
        with torch.no_grad():
            one.lm_head.weight[1000:] = 0.5
    found, expected = logits(model), logits(plain)
    assert found.shape[-1] == 1010
    assert near(found, expected)


def test_a_model_that_is_offloaded(folder: Path) -> None:
    """Accelerate takes the weights away between calls: blocks are let go, and outputs are those of the plain model."""
    model, plain = load(folder), load(folder)
    lay_out(model)
    accelerate.cpu_offload(model, execution_device="cpu")
    assert blocks_of(first(model)) is None
    assert near(logits(model), logits(plain))


def test_weights_for_one_call(folder: Path) -> None:
    """`torch.func.functional_call` multiplies the weights that it is given."""
    model, x = load(folder), torch.randn(3, 512, dtype=BF16)
    lay_out(model)
    other = torch.randn(640, 512, dtype=BF16)
    with torch.no_grad():
        found = torch.func.functional_call(first(model), {"weight": other}, (x,))
    assert torch.equal(found, nn.functional.linear(x, other))


def adapted(model: Any) -> Any:
    """Return the model with a LoRA adapter that is not zero."""
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["q_proj", "up_proj"], r=4, init_lora_weights=False, task_type="CAUSAL_LM")
    return peft.get_peft_model(model, config)


def test_an_adapter_is_trained_on_top(folder: Path) -> None:
    """A LoRA adapter on blocked modules gets the gradients that it gets on plain ones."""
    found = {}
    for blocked in (True, False):
        model = load(folder)
        if blocked:
            lay_out(model)
        model = adapted(model)
        model(input_ids=IDS, labels=IDS).loss.backward()
        found[blocked] = {name: one.grad for name, one in model.named_parameters() if one.requires_grad}
    assert found[True].keys() == found[False].keys()
    for name, gradient in found[True].items():
        expected = found[False][name].float()
        assert float((gradient.float() - expected).norm()) <= 0.1 * float(expected.norm()), name


def test_training_lets_go(folder: Path) -> None:
    """In training the plain weights are multiplied, and learn; the blocks are let go, for their memory."""
    found = {}
    for blocked in (True, False):
        model = load(folder)
        if blocked:
            lay_out(model)
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            model(input_ids=IDS, labels=IDS).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert not any("_safe_dtype_blocks" in module.__dict__ for module in model.modules())
        found[blocked] = logits(model.eval())
    assert torch.equal(found[True], found[False])


@pytest.mark.parametrize("safe", [True, False], ids=["safe-merge", "merge"])
@pytest.mark.parametrize("rows", [1, 20], ids=["few-rows", "many-rows"])
def test_a_merged_adapter_counts(rows: int, safe: bool, folder: Path) -> None:
    """PEFT merges into `weight.data`, which torch does not notice: the merged weights are multiplied all the same."""
    model, plain = load(folder), load(folder)
    lay_out(model)
    base = logits(model, rows)
    merged = [adapted(one).merge_and_unload(safe_merge=safe) for one in (model, plain)]
    found, expected = (logits(one, rows).float() for one in merged)
    assert float((found - expected).norm()) < 0.1 * float((expected - base.float()).norm())


def test_an_adapter_that_is_taken_out_again(folder: Path) -> None:
    """Merged and unmerged, a weight is what it became, rounded twice."""
    model, plain = load(folder), load(folder)
    lay_out(model)
    logits(model)
    found, expected = (adapted(one) for one in (model, plain))
    for one in (found, expected):
        one.merge_adapter()
    assert near(logits(found), logits(expected))
    for one in (found, expected):
        one.unmerge_adapter()
    assert near(logits(found, 1), logits(expected, 1))
    assert near(logits(found.unload()), logits(expected.unload()))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_process_writes(folder: Path) -> None:
    """A child sees what it wrote itself; its parent goes on with its own weights."""
    model, plain = load(folder), load(folder)
    lay_out(model)
    x, module = torch.ones(1, 512, dtype=BF16), first(model)
    with torch.no_grad():
        before = module(x)
        child = os.fork()
        if child == 0:
            module.weight.data[639] = 1
            os._exit(0 if float(module(x)[0, 639]) == 512 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert torch.equal(module(x), before)
        assert near(before, first(plain)(x))
    assert blocks_of(module) is not None
