"""A failure that a guarded run has taught: what the next load of the same checkpoint makes of it."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from guarding.generators import DOWN
from tiny_models import TINY

from safe_dtype import SafeAutoModel, SafeDtypeWarning, plan_of, report
from safe_dtype.devices import detect_one, facts_of, learned_on
from safe_dtype.facts import BFLOAT16
from safe_dtype.planning import Policy

BF16, FP32 = torch.bfloat16, torch.float32


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "cache"))


class VendorLinear(torch.nn.Linear):
    """A layer with a kernel that bfloat16 does not have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply, but not in bfloat16."""
        if x.dtype == BF16:
            raise RuntimeError("vendor kernel: code 7")
        return super().forward(x)


def _fail(module: Any, args: Any) -> None:
    if module.weight.dtype == BF16:
        raise ValueError("my steering vector is float32")


class _Steer:
    def __call__(self, module: Any, args: Any) -> None:
        _fail(module, args)

    def steer(self, module: Any, args: Any) -> None:
        _fail(module, args)


def _run(folder: Path, hook: Any = None) -> Any:
    model = SafeAutoModel.from_pretrained(folder, dtype=BF16)
    if hook is None:
        model.get_submodule(DOWN).__class__ = VendorLinear
    else:
        model.get_submodule(DOWN).register_forward_pre_hook(hook)
    with pytest.warns(SafeDtypeWarning, match="Going on in float32"):
        model(input_ids=torch.arange(3, 9)[None])
    return model


def _warnings(folder: Path, **options: Any) -> tuple[Any, str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = SafeAutoModel.from_pretrained(folder, **options)
    return model, "\n".join(str(one.message) for one in caught if one.category is SafeDtypeWarning)


def test_the_next_load(tmp_path: Path) -> None:
    """A load of the same checkpoint is warned and obeyed; without an order it gets another dtype, until measured anew."""
    folder = TINY["qwen3"].save(tmp_path / "model", BF16)
    other = TINY["qwen3"].save(tmp_path / "other", BF16)
    (failure,) = report(_run(folder)).learned
    assert (failure.op, failure.text, failure.works_in) == (
        "VendorLinear.forward", "vendor kernel: code 7", ("float32",),
    )  # fmt: skip
    for options in ({"dtype": BF16}, {"dtype": BF16, "policy": "strict"}, {"policy": "strict"}):
        model, text = _warnings(folder, **options)
        assert model.dtype == BF16
        assert "failed in it here: VendorLinear.forward raised RuntimeError: vendor kernel: code 7. " in text
        assert "`safe-dtype doctor --refresh`" in text
        assert "cannot" not in text
        assert _warnings(other, **options)[1] == ""
    model, text = _warnings(folder, policy="prefer=memory")
    assert model.dtype in (torch.float16, FP32)  # whichever is accepted for it
    assert "failed in bfloat16 here: VendorLinear.forward raised" in text
    assert f"Loading {str(model.dtype).removeprefix('torch.')} instead. Next: " in text
    shown = plan_of(model).explain()
    assert "matmul: VendorLinear" not in shown
    assert "works here" not in shown
    model, text = _warnings(other, policy="prefer=memory")
    assert (model.dtype, text) == (BF16, "")
    facts_of("cpu", refresh=True)
    assert learned_on(detect_one("cpu")) == ()
    model, text = _warnings(folder, policy="prefer=memory")
    assert (model.dtype, text) == (BF16, "")


@pytest.mark.parametrize(
    "hook",
    [
        pytest.param(_fail, id="function"),
        pytest.param(_Steer(), id="object"),
        pytest.param(_Steer().steer, id="method"),
        pytest.param(functools.partial(_fail), id="partial"),
        pytest.param(torch.no_grad()(_fail), id="decorated"),
    ],
)
def test_hooks_teach_no_later_load(hook: Any, tmp_path: Path) -> None:
    """A hook is on one model in one process: it is in the report, and remembered for no load."""
    folder = TINY["qwen3"].save(tmp_path / "model", BF16)
    assert [one.text for one in report(_run(folder, hook)).learned] == ["my steering vector is float32"]
    assert learned_on(detect_one("cpu")) == ()
    assert _warnings(folder, dtype=BF16)[1] == ""


def test_no_other_way(tmp_path: Path) -> None:
    """Where the policy leaves no other dtype, the one that failed is loaded, with a warning."""
    folder = TINY["qwen3"].save(tmp_path / "model", BF16)
    _run(folder)
    model, text = _warnings(folder, policy=Policy(ladder=(BFLOAT16,)))
    assert model.dtype == BF16
    assert "Loading bfloat16 anyway" in text
