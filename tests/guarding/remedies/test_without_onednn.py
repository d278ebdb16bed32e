"""Where a kernel of oneDNN fails, its module alone is computed without it, in its own dtype."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from guarding.generators import DOWN, tiny
from torch import nn

from safe_dtype import FailureKind, guard, report
from safe_dtype.errors import StrictModeError
from safe_dtype.guarding.remedies.onednn_hooks import runs_without_onednn
from safe_dtype.numerics.onednn import is_in_use

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")

BF16 = torch.bfloat16
IDS = torch.arange(3, 9)[None]
TEXTS = [
    "could not create a primitive descriptor for a matmul primitive",
    "tile 17 has no configuration",
    "\"mkldnn_linear\" not implemented for 'BFloat16'",
]


class OfOneDNN(nn.Linear):
    """A layer whose kernel of oneDNN is broken on this CPU."""

    trouble: str | None = None  # the text of what it raises; None: it gives NaN

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Fail with oneDNN, in 16 bit."""
        output = super().forward(x)
        if is_in_use() and output.dtype == BF16:
            if self.trouble:
                raise RuntimeError(self.trouble)
            output[..., 0] = torch.nan
        return output


def broken(text: str | None) -> Any:
    """Return a model with such a layer."""
    model = tiny()
    model.get_submodule(DOWN).__class__ = OfOneDNN
    model.get_submodule(DOWN).trouble = text
    return model


@torch.no_grad()
@pytest.mark.parametrize("text", [*TEXTS, None])
def test_the_module_alone(text: str | None) -> None:
    """The generation goes on in bfloat16, with that module without oneDNN, and what was learned bars no dtype."""
    model, twin = guard(broken(text)), tiny()
    tokens = model.generate(IDS, max_new_tokens=5, do_sample=False)
    (event,) = report(model).events
    assert (event.remedy, event.module, event.after) == ("the module without oneDNN", DOWN, event.before)
    assert model.dtype is BF16
    assert [name for name, part in model.named_modules() if runs_without_onednn(part)] == [DOWN]
    assert is_in_use()
    assert report(model).learned == ()
    if text == TEXTS[1]:
        assert event.kind is FailureKind.KERNEL_ARCH
    assert tokens.shape == twin.generate(IDS, max_new_tokens=5, do_sample=False).shape


@torch.no_grad()
def test_broken_in_every_dtype() -> None:
    """NaN that a kernel makes in float32 as well is not the model's own."""

    def spoil(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return output * torch.nan if is_in_use() else output

    model, twin = guard(tiny()), tiny()
    model.get_submodule(DOWN).register_forward_hook(spoil)
    assert model(input_ids=IDS).logits.equal(twin(input_ids=IDS).logits)
    (event,) = report(model).events
    assert (event.remedy, event.module) == ("the module without oneDNN", DOWN)
    assert model.dtype is BF16


@torch.no_grad()
def test_where_it_does_not_help() -> None:
    """What fails without oneDNN as well goes on as ever, and no module is left without it."""
    model = guard(tiny())

    def fail(module: Any, _args: Any) -> None:
        if module.weight.dtype == BF16:
            raise RuntimeError("tile 17 has no configuration")

    model.get_submodule(DOWN).register_forward_pre_hook(fail)
    model(input_ids=IDS)
    (event,) = report(model).events
    assert event.remedy == "float32"
    assert not any(runs_without_onednn(part) for part in model.modules())


@torch.no_grad()
def test_a_trial_that_misled() -> None:
    """Where the module fails again all the same, the hooks are taken off before the next remedy."""
    model = guard(broken(TEXTS[1]))
    calls = [0]

    def fail(module: Any, _args: Any) -> None:
        calls[0] += 1
        if calls[0] > 4 and module.weight.dtype == BF16:
            raise RuntimeError(TEXTS[1])

    model.get_submodule(DOWN).register_forward_pre_hook(fail)
    for _ in range(6):
        model(input_ids=IDS)
    assert str(report(model).dtype) == "float32"
    assert is_in_use()


@torch.no_grad()
def test_strict() -> None:
    """Strict mode changes nothing, and names what works."""
    model = guard(broken(TEXTS[1]), policy="strict")
    with pytest.raises(StrictModeError, match=r"run it under torch\.backends\.mkldnn\.flags\(enabled=False\)"):
        model(input_ids=IDS)
    assert not any(runs_without_onednn(part) for part in model.modules())
    assert is_in_use()
