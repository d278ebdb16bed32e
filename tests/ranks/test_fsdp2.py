"""FSDP2: another dtype to compute in, in place, and a step that was broken off leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from safe_dtype import BFLOAT16, FLOAT16, FLOAT32, Policy, guard, report
from safe_dtype.errors import NeedsRestart
from safe_dtype.ranks.fsdp2 import dtype_computed_in, forget_step, gradients_here, is_sharded, policy_in, switch_policy

from .processes import begin_case, run_ranks

WIDTH, WORDS = 16, 32
IN_BFLOAT16 = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
ALL_BFLOAT16 = MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16, torch.bfloat16)
IN_FLOAT32 = MixedPrecisionPolicy(torch.float32, output_dtype=torch.bfloat16)
LADDER = (BFLOAT16, FLOAT16, FLOAT32)


@dataclass(frozen=True)
class Failing:
    """A kernel that one rank lacks from one step on."""

    name: str
    phase: str = "forward"  # or "backward"
    dtypes: tuple[str, ...] = ("bfloat16",)
    rank: int = 1  # -1: all
    step: int = 1
    micro_batches: int = 1
    at_micro_batch: int = 0
    reshard: bool = True
    policy: MixedPrecisionPolicy = IN_BFLOAT16
    clips: bool = False
    steps: int = 3
    longer_from: int = 99  # the step from which on batches are longer


QUICK = [
    Failing("two dtypes", dtypes=("bfloat16", "float16")),
    Failing("accumulated", micro_batches=2, at_micro_batch=0, phase="backward", clips=True),
]
MORE = [
    Failing("forward", step=0),
    Failing("new shapes", step=4, steps=6, longer_from=4),
    Failing("all ranks, no longer armed", rank=-1, step=4, steps=6),
    Failing("all ranks, no longer armed, in backward", rank=-1, step=4, steps=6, phase="backward", micro_batches=2),
    Failing("backward", phase="backward", rank=0, reshard=False),
    Failing("as accelerate shards", policy=ALL_BFLOAT16, micro_batches=2, at_micro_batch=1),
]
SPELLED = {"bfloat16": "BFloat16", "float16": "Half"}
PLACE: dict[str, Any] = {}  # where this rank is: the case, or None where nothing fails, the step and the micro-batch


def lacks_a_kernel(phase: str, values: Tensor) -> None:
    """Raise as a kernel that is not there."""
    case = PLACE["case"]
    if case is None or (case.phase, case.step) != (phase, PLACE["step"]) or case.rank not in (-1, dist.get_rank()):
        return
    name = str(values.dtype).removeprefix("torch.")
    if name in case.dtypes and case.at_micro_batch == PLACE["micro_batch"]:
        raise RuntimeError(f"\"kernel\" not implemented for '{SPELLED[name]}'")


@torch.library.custom_op("safe_dtype_tests::kernel", mutates_args=())
def kernel(values: Tensor) -> Tensor:
    """A copy."""
    lacks_a_kernel("forward", values)
    return values.clone()


@torch.library.custom_op("safe_dtype_tests::kernel_backward", mutates_args=())
def kernel_backward(gradient: Tensor) -> Tensor:
    """The derivative of a copy."""
    lacks_a_kernel("backward", gradient)
    return gradient.clone()


kernel.register_fake(torch.empty_like)
kernel_backward.register_fake(torch.empty_like)
kernel.register_autograd(lambda _, gradient: torch.ops.safe_dtype_tests.kernel_backward(gradient))


class Block(nn.Module):
    """A residual block with the kernel in its middle, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, values: Tensor) -> Tensor:
        """Return what comes out."""
        inner = torch.ops.safe_dtype_tests.kernel(self.up(self.norm(values)))
        return values + nn.functional.dropout(self.down(nn.functional.gelu(inner)), 0.1)


class Words(nn.Module):
    """Words in, the loss of the next ones out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS)
        self.blocks = nn.Sequential(Block(), Block())

    def forward(self, words: Tensor) -> Tensor:
        """Return the loss."""
        scores = self.head(self.blocks(self.embedding(words)))
        return nn.functional.cross_entropy(scores.float().flatten(0, 1), words.flatten())


def sharded(case: Failing) -> Words:
    """Return a model of which every block is sharded, and the rest around them."""
    torch.manual_seed(0)
    model = Words()
    for block in model.blocks:
        fully_shard(block, mp_policy=case.policy, reshard_after_forward=case.reshard)
    fully_shard(model, mp_policy=case.policy, reshard_after_forward=case.reshard)
    return model


def everything() -> dict[str, Any]:
    """Return what this rank has seen, by case."""
    results: dict[str, Any] = {}
    for name, break_off in (("no synchronization", no_synchronization), ("an error in forward", error_in_forward)):
        begin_case(name)
        policies = (IN_BFLOAT16, MixedPrecisionPolicy(torch.bfloat16))
        results[name] = [goes_on_after(break_off, policy) for policy in policies]
    begin_case("islands")
    results["islands"] = islands()
    begin_case("another torch")
    results["another torch"] = another_torch()
    begin_case("inference")
    results["inference"] = inference()
    return results


def no_synchronization(model: Words, words: Tensor) -> None:
    """Leave off after a micro-batch whose gradients were only summed up."""
    model.set_requires_gradient_sync(False)
    model(words).backward()
    model.set_requires_gradient_sync(True)


def error_in_forward(model: Words, words: Tensor) -> None:
    """Leave off between two blocks."""
    hook = model.blocks[1].down.register_forward_pre_hook(lambda *_: {}["no such key"])
    with pytest.raises(KeyError):
        model(words)
    hook.remove()


def goes_on_after(break_off: Callable[[Words, Tensor], None], policy: MixedPrecisionPolicy) -> bool:
    """Whether the gradients of a step are what they should be where the one before was broken off and forgotten."""
    case, gradients = Failing("", policy=policy), []
    PLACE.update(case=None)
    for breaks in (False, True):
        model = sharded(case)
        if breaks:
            break_off(model, torch.tensor([[4, 5, 6]]))
            forget_step(model)
        torch.manual_seed(1)
        model(torch.tensor([[1, 2, 3]])).backward()
        gradients.append(torch.cat([gradient.flatten() for gradient in gradients_here(model)]))
    return torch.equal(*gradients)


def islands() -> list[str]:
    """Return the dtypes in which the blocks and the head of a model with one block in float32 compute, before and after."""
    seen: list[str] = []
    torch.manual_seed(0)
    model = Words()
    for number, block in enumerate(model.blocks):
        fully_shard(block, mp_policy=IN_FLOAT32 if number == 0 else IN_BFLOAT16)
    fully_shard(model, mp_policy=IN_BFLOAT16)
    modules = (model.blocks[0].down, model.blocks[1].down, model.head)
    for module in modules:
        module.register_forward_pre_hook(
            lambda module, _: seen.append(str(module.weight.dtype).removeprefix("torch."))
        )
    model(torch.tensor([[1, 2, 3]]))
    forget_step(model)
    switch_policy(model, FLOAT16)
    model(torch.tensor([[1, 2, 3]]))
    return seen


def another_torch() -> list[str]:
    """Return what is raised for each part that another version of torch may lack, with the model as it was."""
    model, texts = sharded(Failing("")), []
    group = model._get_fsdp_state()._fsdp_param_groups[0]
    for owner, name in (
        (type(model), "reset_iter_state"),
        (group, "mp_policy"),
        (group.fsdp_params[0], "all_gather_outputs"),
    ):
        with without(owner, name), pytest.raises(NeedsRestart) as raised:
            switch_policy(model, FLOAT32)
        texts.append(str(raised.value))
    assert dtype_computed_in(model) == torch.bfloat16
    return texts


def inference() -> dict[str, Any]:
    """Return what comes of a guarded model where one rank alone has NaN, and where all lack a kernel."""
    PLACE.update(case=None)
    model = sharded(Failing("")).eval()
    guard(model, policy=Policy(ladder=LADDER))
    words, rank = torch.tensor([[1, 2, 3]]), dist.get_rank()

    def spoil(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return output * float("nan") if rank else output

    def fail(*_: Any) -> None:
        raise RuntimeError("\"gelu\" not implemented for 'BFloat16'")

    with torch.no_grad():
        torch.manual_seed(1)  # the blocks drop numbers in any case
        expected = model(words)
        hook = model.blocks[0].register_forward_hook(spoil)
        spoiled = model(words)
        hook.remove()
        hook = model.blocks[0].register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="gelu"):
            model(words)
        hook.remove()
        forget_step(model)
        torch.manual_seed(1)
        after = model(words)
    return {"finite": bool(spoiled.isfinite().all()), "as before": torch.equal(after, expected),
            "events": len(report(model).events)}  # fmt: skip


@contextmanager
def without(owner: Any, name: str) -> Iterator[None]:
    """Have an attribute be missing: of an object, or of what its class inherits."""
    if isinstance(owner, type):
        owner = next(base for base in owner.__mro__ if name in vars(base))
    value = vars(owner)[name]
    delattr(owner, name)
    try:
        yield
    finally:
        setattr(owner, name, value)


@pytest.fixture(scope="module")
def seen() -> list[dict[str, Any]]:
    """What each of two ranks has seen."""
    return run_ranks(everything, 2)


@pytest.mark.parametrize("name", ["no synchronization", "an error in forward"])
def test_a_step_that_was_broken_off_is_forgotten(seen: list[dict[str, Any]], name: str) -> None:
    """Nothing of it is in the gradients of the next one."""
    assert [of_rank[name] for of_rank in seen] == [[True, True]] * 2


def test_no_rank_cures_a_spread_model_alone(seen: list[dict[str, Any]]) -> None:
    """What it ran or cast would leave the others waiting: NaN and errors are handed on, and the weights stay."""
    assert [of_rank["inference"] for of_rank in seen] == [
        {"finite": rank == 0, "as before": True, "events": 0} for rank in range(2)
    ]


def test_islands_stay(seen: list[dict[str, Any]]) -> None:
    """A block whose policy names another dtype keeps it."""
    assert seen[0]["islands"] == ["float32", "bfloat16", "bfloat16", "float32", "float16", "float16"]


def test_what_another_torch_lacks_is_named(seen: list[dict[str, Any]]) -> None:
    """A restart is asked for, and nothing was changed."""
    names = (
        "FSDPWords has no reset_iter_state",
        "FSDPParamGroup has no mp_policy",
        "FSDPParam has no all_gather_outputs",
    )
    assert all(name in text for name, text in zip(names, seen[0]["another torch"], strict=True))


@pytest.mark.parametrize(
    ("policy", "new", "expected"),
    [
        ((torch.bfloat16, torch.float32), torch.float32, (torch.float32, torch.float32, None)),
        ((torch.bfloat16, torch.bfloat16, torch.bfloat16), torch.float32, (torch.float32,) * 3),
        (
            (torch.bfloat16, torch.bfloat16, torch.float32),
            torch.float16,
            (torch.float16, torch.float32, torch.float32),
        ),
        ((torch.bfloat16,), torch.float16, (torch.float16, torch.float32, None)),
        ((torch.float32, None, torch.bfloat16), torch.float16, (torch.float32, None, torch.float16)),
    ],
    ids=["reduced-in-float32", "all-in-one", "sums-of-float16", "follows", "an-island"],
)
def test_policies(policy: tuple[Any, ...], new: torch.dtype, expected: tuple[Any, ...]) -> None:
    """The former dtype is nowhere in it, gradients of float16 are summed in float32, and the rest stays."""
    changed = policy_in(MixedPrecisionPolicy(*policy, cast_forward_inputs=False), torch.bfloat16, new)
    assert (changed.param_dtype, changed.reduce_dtype, changed.output_dtype) == expected
    assert changed.cast_forward_inputs is False


def test_a_plain_model_is_not_sharded() -> None:
    """Nothing is done with it."""
    model = nn.Linear(2, 2)
    assert not is_sharded(model)
    assert dtype_computed_in(model) is None
    forget_step(model)
    switch_policy(model, FLOAT32)
    assert model.weight.dtype == torch.float32
