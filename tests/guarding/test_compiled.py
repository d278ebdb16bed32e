"""Compiled decoding, compiled models and compiled graphs around guarded ones."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from guarding.generators import tiny
from guarding.oracle import Switch
from torch import nn

from safe_dtype import FLOAT16, FLOAT32, guard, report, unguard
from safe_dtype.guarding import FailureKind
from safe_dtype.testing import fault

IDS = torch.arange(3, 9)[None]
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


# Torch 2.6 cannot compile the plain models of transformers 5.16.
of_whole_models = pytest.mark.needs("torch>=2.13")


@of_whole_models
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
    """Overflows float16 between its layers, though all its weights and inputs are small, and no scaled layer helps."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.last = nn.LayerNorm(8)

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


def test_nan_by_design_in_what_the_caller_compiled() -> None:
    """NaN that float32 gives as well is handed on, and the guard comes off without a trace."""

    class Nothing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) * (x - x) / (x - x)

    model = guard(compiled(Nothing().eval().half(), "wrapped"))
    for _ in range(2):
        assert model(torch.ones(1, 2).half()).isnan().all()
    assert report(model).events == ()
    unguard(model)
    assert model(torch.ones(1, 2).half()).isnan().all()
    torch.compiler.reset()


@of_whole_models
def test_inside_a_compiled_graph() -> None:
    """Compiled after it was guarded, a model makes one whole graph: the guard is not in it."""
    model = guard(tiny())
    graph = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(graph(input_ids=IDS).logits, model(input_ids=IDS).logits)
    torch.compiler.reset()


def test_a_module_that_is_built_while_torch_compiles() -> None:
    """A function that builds modules of a guarded class is captured whole, as without a guard."""
    model = guard(torch.nn.Sequential(torch.nn.Identity()).eval())

    def build(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity())(x) + 1  # type: ignore[no-any-return]

    x = torch.randn(3)
    assert torch.equal(torch.compile(build, backend="eager", fullgraph=True)(x), x + 1)
    assert torch.equal(model(x), x)


class Spectrum(nn.Module):
    """A layer of which torch has no kernel in bfloat16, or one that fails with a text that nobody knows."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.how = how

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """Return (batch, 8)."""
        if self.how == "kernel":
            return self.layer(torch.fft.fft(given).real)
        if given.dtype == torch.bfloat16:
            raise RuntimeError("no encoding for opcode 0x3f")
        return self.layer(given)


@pytest.mark.parametrize("text", ["kernel", "unknown"])
@pytest.mark.parametrize("how", ["wrapped", "in-place", "forward", "part", "part-wrapped"])
def test_failures_under_a_compiler(how: str, text: str) -> None:
    """The compiler raises an error of its own class in place of the module's: the module is put to the test all the same."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), Spectrum(text)).eval().bfloat16()
    given = torch.randn(2, 8).bfloat16()
    truth = copy.deepcopy(net).float()(given.float())
    if how == "part":
        net[1].compile(backend="eager")
    elif how == "part-wrapped":
        net[1] = torch.compile(net[1], backend="eager")
    model = guard(net if how.startswith("part") else compiled(net, how))
    with torch.no_grad():
        assert torch.equal(model(given), truth)
    assert [event.after for event in report(model).events][-1] == FLOAT32
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # the compiler's, on what it does not follow
def test_compiled_around_a_guard() -> None:
    """What is done to cure a model is not compiled with it."""
    model = tiny().to(torch.bfloat16)
    truth = tiny().float()(input_ids=IDS).logits  # whose frequencies are not rounded: they are made anew as well
    with fault(guard(model), "model.layers.1.mlp.down_proj", "cublas"), torch.no_grad():
        assert torch.equal(torch.compile(model, backend="eager")(input_ids=IDS).logits, truth)
    torch.compiler.reset()


@of_whole_models
@pytest.mark.parametrize(
    "always", [pytest.param(False, id="in-bfloat16"), pytest.param(True, id="in-every-dtype", marks=pytest.mark.slow)]
)
@torch.no_grad()
def test_an_assertion_of_the_compiler(always: bool) -> None:
    """A compiler that stumbles over an exception of the model's raises another: what the model raises is found eagerly."""

    class Failing(nn.Linear):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            if always or hidden.dtype == BF16:
                raise RuntimeError("no encoding for opcode 0x3f")
            return super().forward(hidden)

    model, plain = tiny(), tiny().float()
    model.model.layers[1].mlp.down_proj.__class__ = Failing
    graph = guard(torch.compile(model, backend="eager"))
    if always:
        with pytest.raises(Exception):  # noqa: B017, PT011  (whatever the compiler makes of it)
            graph(input_ids=IDS)
        assert (model.dtype, report(graph).events) == (BF16, ())
    else:
        assert torch.allclose(graph(input_ids=IDS).logits, plain(input_ids=IDS).logits, atol=1e-5)
        (event,) = report(graph).events
        assert event.module == "_orig_mod.model.layers.1.mlp.down_proj"
    torch.compiler.reset()
