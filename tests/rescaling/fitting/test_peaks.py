"""The largest number of every operation, and of which module: only what float16 would have to hold counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from engineered import engineered, prompts
from torch import Tensor, nn

from safe_dtype.models.blocks import block_names
from safe_dtype.models.shift_hooks import shift_on
from safe_dtype.rescaling.fitting.peaks import Peak, Peaks, record_peaks

BF16 = torch.bfloat16


class Runs(nn.Module):
    """A model that computes what a function says of an input of ones, with one module inside."""

    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = nn.Identity()
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        """Compute."""
        found: Tensor = self.inner(self.compute(x))
        return found


def peaks(model: nn.Module, *, dtype: torch.dtype = BF16, **inputs: Any) -> Peaks:
    """Return the peaks of one call with ones."""
    return record_peaks(model, [{"x": torch.ones(2, 4, dtype=dtype), **inputs}], dtype)


def hooks(model: nn.Module) -> int:
    """Return how many hooks there are in `model`."""
    return sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.modules())


@pytest.mark.parametrize(
    ("family", "module", "op"),
    [
        ("llama", "model.layers.1", "aten.add.Tensor"),
        ("phi3_interior", "model.layers.1.mlp", "aten.mul.Tensor"),
        ("opt_interior", "model.decoder.layers.1.fc1", "aten.linear.default"),
        ("qwen2_scores", "model.layers.1.self_attn", "aten.matmul.default"),
    ],
)
def test_where_it_overflows(family: str, module: str, op: str) -> None:
    """What leaves float16's range first is found with the module and the operation, also between two modules."""
    model = engineered(family).to(BF16)
    found = record_peaks(model, prompts(family, count=2, tokens=24, seed=3), BF16)
    over = {(one.module, one.op) for one in found.beyond(65504)}
    assert (module, op) in over
    assert found.largest is not None
    assert found.largest == found.beyond(0)[0]
    assert found.of(found.largest) == found.largest.largest > 65504


@pytest.mark.parametrize(
    ("family", "kernels"),
    [("llama", "eager"), ("llama", "sdpa"), ("gemma2", "eager"), ("t5", "eager"), ("t5", "sdpa")],
)
def test_masks_are_no_activations(family: str, kernels: str) -> None:
    """Masks are filled with the end of the range, or with infinity; nothing near them is taken for a peak."""
    model = engineered(family).to(BF16)
    model.set_attn_implementation(kernels)
    batch = prompts(family, count=1, tokens=24, seed=3)[0]
    mask = torch.ones_like(batch["input_ids"])
    mask[:, :3] = 0  # padding on the left
    found = record_peaks(model, [{**batch, "attention_mask": mask}], BF16, blocks=block_names(model))
    assert found.largest is not None
    assert 1e4 < found.largest.largest < 1e7
    assert not found.nonfinite


@pytest.mark.parametrize(
    ("compute", "largest"),
    [
        pytest.param(lambda x: x * torch.finfo(BF16).min, 1.0, id="lowest"),
        pytest.param(lambda x: x.masked_fill(x > 0, -torch.inf), 1.0, id="infinite"),
        pytest.param(lambda x: x * torch.nan, 1.0, id="nan"),
        pytest.param(lambda x: (x.float() * 1e6 * 1e-6).to(BF16), 1.0, id="float32-on-the-way"),
        pytest.param(lambda x: x * -1e6, 999424.0, id="negative"),
        pytest.param(lambda x: (x * 1e6).float().mul(1e-6).to(BF16), 999424.0, id="before-float32"),
        pytest.param(lambda x: x.clone().mul_(64), 64.0, id="in-place"),
        pytest.param(lambda x: x.new_zeros(0), 1.0, id="empty"),
        pytest.param(lambda x: (x * 3).topk(1).values, 3.0, id="of-several-results"),
        pytest.param(lambda x: (x * 3).view(-1)[:1], 3.0, id="views-are-nothing-new"),
    ],
)
def test_what_counts(compute: Callable[[Tensor], Tensor], largest: float) -> None:
    """Finite numbers in the model's own dtype count, by their size; results in float32 do not."""
    found = peaks(Runs(lambda x: compute(x + 0)))
    assert found.largest is not None
    assert found.largest.largest == largest
    assert {one.module for one in found.beyond(0)} <= {""}


def test_calls_add_up() -> None:
    """The largest over all batches is kept, whichever came first."""
    model = Runs(lambda x: x * 3)
    batches = [{"x": torch.full((1,), size, dtype=BF16)} for size in (2.0, 7.0, 1.0)]
    assert record_peaks(model, batches, BF16).beyond(0) == [Peak("", "aten.mul.Tensor", 21.0)]


def test_another_dtype_counts_for_nothing() -> None:
    """A model that runs in float32 alone has no peaks in 16 bit."""
    found = record_peaks(Runs(lambda x: x * 3), [{"x": torch.ones(2)}], BF16)
    assert found.largest is None
    assert found.beyond(0) == []
    assert found.of(Peak("", "aten.mul.Tensor", 1.0)) == 0


def test_operations_belong_to_the_innermost_module() -> None:
    """What a module does, and what its parent does before and after it, are told apart."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Runs(lambda x: x * 5)

        def forward(self, x: Tensor) -> Tensor:
            before = x * 2
            after: Tensor = self.inner(before) * 3
            return after

    found = peaks(Outer())
    assert {(one.module, one.largest) for one in found.beyond(0)} == {("", 30.0), ("inner", 10.0)}


def test_shifted_norm() -> None:
    """A norm with a shift computes in float32 once the model is in float16: of it only what it returns counts."""
    model = nn.ModuleDict({"norm": nn.LayerNorm(4), "other": nn.LayerNorm(4)}).to(BF16)
    torch.nn.init.constant_(model["norm"].bias, 2.0**18)
    torch.nn.init.constant_(model["other"].bias, 2.0**18)
    shift_on(model["norm"]).output_exponent = -10

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = model

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.norms["norm"](x), self.norms["other"](x)])

    found = peaks(Both())
    assert found.operations["norms.norm", "output"] == 2.0**8
    assert [module for module, _ in found.operations].count("norms.norm") == 1
    assert max(value for (module, _), value in found.operations.items() if module == "norms.other") == 2.0**18


def test_blocks() -> None:
    """What blocks return is kept by their names, the largest of all calls, tuples and all."""
    model = engineered("llama").to(BF16)
    batches, names = prompts("llama", count=2, tokens=24, seed=3), tuple(block_names(model))
    found = record_peaks(model, batches, BF16, blocks=names)
    assert tuple(found.blocks) == names
    assert found.operations == record_peaks(model, batches, BF16).operations, "looking at blocks adds none"
    with torch.inference_mode():
        states = [model(**one, output_hidden_states=True).hidden_states for one in batches]
    for place, name in enumerate(names[:-1]):  # the last one is normalized before it is given back
        assert found.blocks[name] == max(float(one[place + 1].abs().max()) for one in states)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_are_seen(bad: float) -> None:
    """A block that returns no number is told, also where a later batch is all right."""
    model = nn.Sequential(nn.Identity())
    runs = Runs(lambda x: x * bad if float(x.sum()) > 4 else x)
    runs.inner = model
    batches = [{"x": torch.full((4,), size, dtype=BF16)} for size in (1.0, 2.0, 1.0)]
    assert record_peaks(runs, batches, BF16, blocks=["inner"]).nonfinite
    assert not record_peaks(runs, batches[:1], BF16, blocks=["inner"]).nonfinite


def test_nothing_is_left_behind() -> None:
    """No hook and no mode outlives the recording, or the error that ends it."""
    model = engineered("llama").to(BF16)
    before = hooks(model)
    record_peaks(model, prompts("llama", count=1, tokens=8, seed=3), BF16, blocks=block_names(model))
    assert hooks(model) == before
    with pytest.raises(IndexError):
        record_peaks(model, [{"input_ids": torch.tensor([[9999]])}], BF16, blocks=block_names(model))
    assert hooks(model) == before
    assert not torch.is_inference_mode_enabled()
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


def test_a_name_that_there_is_not() -> None:
    """A block that the model has not is an error, after which no hook is left."""
    model = engineered("llama")
    before = hooks(model)
    with pytest.raises(AttributeError):
        record_peaks(model, [], BF16, blocks=["model.layers.0", "model.layers.9"])
    assert hooks(model) == before


@pytest.mark.parametrize(
    "made",
    [torch.empty_like, lambda x: x.new_empty(x.shape), lambda x: torch.empty(2, 4, dtype=x.dtype)],
    ids=["empty_like", "new_empty", "empty"],
)
def test_memory_that_nobody_has_written(made: Callable[[Tensor], Tensor]) -> None:
    """What was in memory before is no number of the model; what is written there is."""
    operations = peaks(Runs(lambda x: made(x).copy_(x * 3))).operations
    assert not [op for _, op in operations if "empty" in op]
    assert operations["", "aten.copy_.default"] == 3
