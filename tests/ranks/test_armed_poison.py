"""While armed, what fails for its dtype gives NaN of the shape due; what NaN cannot stand for raises as ever.

Most cases are kernels that torch really lacks on a CPU: no arithmetic in float8, no factorizations in bfloat16.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.utils.checkpoint import checkpoint

from safe_dtype.ranks.armed_poison import ArmedPoison, Arming
from safe_dtype.testing import TEXTS

EIGHT, SIXTEEN = torch.float8_e4m3fn, torch.bfloat16
NUMBERS = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])


@torch.library.custom_op("safe_dtype_tests::raises", mutates_args=())
def raises(values: Tensor, text: str) -> Tensor:
    """An operation of somebody else."""
    if text == "KeyError":
        raise KeyError(text)
    raise RuntimeError(text)


@raises.register_fake
def _(values: Tensor, text: str) -> Tensor:
    return torch.empty_like(values)


raises.register_autograd(lambda _, gradient: (gradient, None))


@torch.library.custom_op("safe_dtype_tests::raises_backward", mutates_args=())
def raises_backward(values: Tensor) -> Tensor:
    """An operation whose derivative has no kernel."""
    return values.clone()


raises_backward.register_fake(torch.empty_like)
raises_backward.register_autograd(lambda _, gradient: torch.ops.safe_dtype_tests.raises(gradient, TEXTS["cublas"]))


def all_nan(value: Any) -> bool:
    """Whether every number of a floating tensor is NaN."""
    return bool(value.to(torch.complex64 if value.is_complex() else torch.float32).isnan().all())


def result_of(call: Callable[[], Any]) -> tuple[Any, ArmedPoison]:
    """Return what `call` gives while armed."""
    with ArmedPoison() as poison:
        return call(), poison


@pytest.mark.parametrize(
    ("call", "op", "shape", "dtype"),
    [
        pytest.param(lambda x: x.to(EIGHT) + 1, "aten.add.Tensor", (2, 3), EIGHT, id="float8"),
        pytest.param(lambda x: x.to(EIGHT).mean(1), "aten.mean.dim", (2,), EIGHT, id="another-shape"),
        pytest.param(lambda x: torch.cdist(x.to(SIXTEEN), x.to(SIXTEEN)), "aten._cdist_forward.default", (2, 2), SIXTEEN, id="no-kernel"),
        pytest.param(lambda x: x.to(SIXTEEN) @ x.t(), "aten.mm.default", (2, 2), SIXTEEN, id="two-dtypes"),
        pytest.param(lambda x: torch.linalg.eigvals(x.to(SIXTEEN)[:, :2]), "aten.linalg_eig.default", (2,), torch.complex64, id="complex"),
        pytest.param(lambda x: torch.empty(3, dtype=EIGHT).normal_(), "aten.normal_.default", (3,), EIGHT, id="random"),
        pytest.param(lambda x: torch.ops.safe_dtype_tests.raises(x.t(), TEXTS["cublas"]), "safe_dtype_tests.raises.default", (3, 2), torch.float32, id="custom"),
    ],
)  # fmt: skip
def test_nan_of_the_shape_due(
    call: Callable[[Tensor], Tensor], op: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Shape and dtype are those of a result, and what failed is remembered with its failure."""
    with pytest.raises((RuntimeError, NotImplementedError)):
        call(NUMBERS)
    value, poison = result_of(lambda: call(NUMBERS))
    assert (tuple(value.shape), value.dtype, all_nan(value)) == (shape, dtype, True)
    assert poison.poisoned[0].op == op
    assert poison.poisoned[0].failure.message == str(poison.error)
    assert poison.error is not None
    assert poison.error.__traceback__ is None


def test_strides_are_those_of_the_result() -> None:
    """What comes after may view it as it would have viewed the numbers."""
    value, _ = result_of(lambda: torch.ops.safe_dtype_tests.raises(NUMBERS.t(), TEXTS["cublas"]))
    assert value.stride() == (1, 3)


def test_integers_beside_floats_are_valid_indices() -> None:
    """Indices are 0, which every dimension has."""
    (values, indices), poison = result_of(lambda: NUMBERS.to(EIGHT).topk(2))
    assert all_nan(values)
    assert indices.tolist() == [[0, 0], [0, 0]]
    assert [done.op for done in poison.poisoned] == ["aten.topk.default"]


def test_in_place_the_target_is_nan() -> None:
    """The very tensor comes back, and holds NaN: so does what it is a view of."""
    whole = NUMBERS.to(EIGHT)
    value, _ = result_of(lambda: whole[0].add_(1))
    assert all_nan(value)
    assert all_nan(whole[0])
    assert whole[1].float().tolist() == [3, 2, 1]
    assert value.data_ptr() == whole.data_ptr()


def test_out_is_nan() -> None:
    """`out=` comes back as it was passed, with NaN in it."""
    out = torch.zeros(2, 3, dtype=EIGHT)
    value, _ = result_of(lambda: torch.add(NUMBERS.to(EIGHT), 1, out=out))
    assert value is out
    assert all_nan(out)


def test_lists_are_written_into() -> None:
    """An operation on many tensors at once returns nothing, and leaves NaN in all."""
    values = [NUMBERS.to(EIGHT), NUMBERS[0].to(EIGHT)]
    result_of(lambda: torch._foreach_add_(values, 1.0))
    assert all(all_nan(value) for value in values)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        pytest.param(lambda: NUMBERS.to(EIGHT).argmax(), "no floating number", id="only-integers"),
        pytest.param(lambda: torch.multinomial(NUMBERS.to(EIGHT), 1), "no floating number", id="a-token"),
        pytest.param(lambda: NUMBERS.to(EIGHT).nonzero(), "not known without running it", id="shape-of-numbers"),
        pytest.param(lambda: torch.logcumsumexp(NUMBERS.to(EIGHT), 0, out=torch.empty(0, dtype=EIGHT)), "changed the shape", id="out-of-another-shape"),
        pytest.param(lambda: torch.geqrf(NUMBERS.to(SIXTEEN)), "not known without running it", id="no-shape-function"),
    ],
)  # fmt: skip
def test_what_nan_cannot_stand_for_raises(call: Callable[[], Any], reason: str) -> None:
    """The very error comes through, nothing counts as poisoned, and the reason is told."""
    poison = ArmedPoison()
    with pytest.raises((RuntimeError, NotImplementedError), match="not implemented"), poison:
        call()
    assert poison.poisoned == ()
    assert reason in poison.refusal


@pytest.mark.parametrize("text", ["out_of_memory", "shape", "sticky", "KeyError", "[gloo] Connection closed by peer"])
def test_what_is_no_matter_of_dtypes_raises(text: str) -> None:
    """Memory, shapes, a lost device, communication and errors of the caller come through as they are."""
    poison = ArmedPoison()
    with pytest.raises((RuntimeError, KeyError)), poison:
        torch.ops.safe_dtype_tests.raises(NUMBERS, TEXTS.get(text, text))
    assert (poison.poisoned, poison.refusal) == ((), "")


def test_collectives_are_never_swallowed() -> None:
    """Whatever a collective says: a peer waits for the numbers of this rank."""
    library = torch.library.Library("c10d_functional", "FRAGMENT")
    library.define("safe_dtype_tests_gather(Tensor values) -> Tensor")

    def no_such_dtype(values: Tensor) -> Tensor:
        raise RuntimeError(TEXTS["not_implemented"])

    library.impl("safe_dtype_tests_gather", no_such_dtype, "CPU")
    poison = ArmedPoison()
    with pytest.raises(RuntimeError, match="not implemented"), poison:
        torch.ops.c10d_functional.safe_dtype_tests_gather(NUMBERS)
    assert poison.poisoned == ()


class Layers(nn.Module):
    """A product, an operation of somebody else, and a product again."""

    def __init__(self, op: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.op, self.last = nn.Linear(3, 4), op, nn.Linear(4, 2)

    def forward(self, values: Tensor) -> Tensor:
        """Return one number."""
        return self.last(self.op(self.first(values))).sum()


@pytest.mark.parametrize(
    ("op", "finite"),
    [
        (lambda x: torch.ops.safe_dtype_tests.raises(x, TEXTS["cublas"]) * x, ["last.bias"]),
        (raises_backward, ["last.weight", "last.bias"]),
        (lambda x: checkpoint(raises_backward, x, use_reentrant=False), ["last.weight", "last.bias"]),
    ],
    ids=["forward", "backward", "checkpointed"],
)
def test_every_gradient_is_there(op: Callable[[Tensor], Tensor], finite: list[str]) -> None:
    """Backward runs to its end in forward failures as in its own: a sum over ranks finds the gradients that it waits for."""
    model = Layers(op)
    with ArmedPoison() as poison:
        model(NUMBERS).backward()
    assert poison.poisoned
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is not None and not all_nan(gradient)] == finite
    assert None not in gradients.values()


def test_the_module_is_known() -> None:
    """The innermost module that was running is remembered; in backward none was."""
    model = Layers(lambda x: torch.ops.safe_dtype_tests.raises(x, TEXTS["cublas"]))
    _, poison = result_of(lambda: model(NUMBERS))
    assert poison.poisoned[0].module is not None
    assert poison.poisoned[0].module() is model
    model = Layers(raises_backward)
    _, poison = result_of(lambda: model(NUMBERS).backward())
    assert poison.poisoned[0].module is None


def test_only_the_first_failures_are_kept() -> None:
    """A model in a dtype that fails everywhere leaves a report, not a list."""
    _, poison = result_of(lambda: [NUMBERS.to(EIGHT) + 1 for _ in range(50)])
    assert len(poison.poisoned) == 8


def test_random_numbers_of_what_works_are_those_of_an_unarmed_step() -> None:
    """The mode draws nothing itself, not even where it finds out shapes."""
    torch.manual_seed(5)
    expected = dropout(NUMBERS)
    torch.manual_seed(5)

    def step() -> Tensor:
        dropout(NUMBERS.to(EIGHT))
        return dropout(NUMBERS)

    value, poison = result_of(step)
    assert poison.poisoned[0].op == "aten.bernoulli_.float"
    assert torch.equal(value, expected)


def test_what_is_compiled_is_watched() -> None:
    """A compiled module runs operation by operation while armed, and compiled again afterwards."""
    ran: list[int] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            ran.append(1)
            return graph(*args)

        return run

    model = torch.compile(Layers(lambda x: x.to(EIGHT).relu().to(x.dtype)), backend=backend)
    value, poison = result_of(lambda: model(NUMBERS))
    assert all_nan(value)
    assert (poison.poisoned[0].op, ran) == ("aten.relu.default", [])
    with pytest.raises(NotImplementedError):
        model(NUMBERS)
    assert ran == [1]


def test_unarmed_costs_nothing() -> None:
    """No line of ours runs in a step that is not armed, and many do in one that is."""
    ours = str(Path(sys.modules[ArmedPoison.__module__].__file__ or "").parent)

    def calls_in(step: Callable[[], object]) -> int:
        calls: list[str] = []
        sys.setprofile(
            lambda frame, event, _: calls.append(event) if frame.f_code.co_filename.startswith(ours) else None
        )
        try:
            step()
        finally:
            sys.setprofile(None)
        return calls.count("call")

    model, poison = Layers(torch.relu), ArmedPoison()
    with poison:
        assert calls_in(lambda: model(NUMBERS).backward()) >= 10
    assert calls_in(lambda: model(NUMBERS).backward()) == 0


def test_armed_at_first_and_for_what_is_new() -> None:
    """Three steps after a start, after a change of dtype, and from new shapes on; never for shapes that were there."""
    arming = Arming()
    steps = []
    for event in ["start", "", "", "", "seen", "", "new", "", "", "", "changed", "", "", ""]:
        if event == "changed":
            arming.begin_anew()
        arming.sees((2, 8 if event == "new" else 3))
        steps.append(arming.is_due)
        arming.step_done()
    three = [True] * 3
    assert steps == [*three, False, False, False, *three, False, *three, False]
