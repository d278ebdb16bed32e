"""A fault shows in the bad dtype, from the call that it is set for, and is gone after the block."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import nn
from transformers.utils import ModelOutput

from safe_dtype.facts import BFLOAT16, FLOAT16
from safe_dtype.testing import TEXTS, fault

BF16, FP32 = torch.bfloat16, torch.float32


def model(dtype: torch.dtype = BF16) -> nn.Sequential:
    """Return two layers without a choice of weights."""
    return nn.Sequential(nn.Linear(3, 3), nn.ReLU()).to(dtype)


@pytest.mark.parametrize("kind", TEXTS)
def test_texts(kind: str) -> None:
    """The module raises the user's words, and counts it; before and after it does not."""
    faulty, image = model(), torch.ones(2, 3, dtype=BF16)
    with fault(faulty, "0", kind, call=1) as put:
        faulty(image)
        with pytest.raises(RuntimeError) as caught:
            faulty(image)
    assert str(caught.value) == TEXTS[kind]
    assert (put.kind, put.calls, put.fired) == (kind, 2, 1)
    faulty(image)
    assert put.calls == 2


def test_in_the_words_of_the_dtype() -> None:
    """Of float16 the text names float16."""
    faulty = model(torch.float16)
    with fault(faulty, "0", "not_implemented", dtype=FLOAT16), pytest.raises(RuntimeError, match="for 'Half'"):
        faulty(torch.ones(2, 3, dtype=torch.float16))


def test_another_dtype_is_good() -> None:
    """In another dtype than the bad one nothing happens."""
    faulty = model(FP32)
    with fault(faulty, "0", "cublas", dtype=BFLOAT16) as put:
        faulty(torch.ones(2, 3))
    assert (put.calls, put.fired) == (0, 0)


@pytest.mark.parametrize(("kind", "number"), [("nan", torch.nan), ("inf", torch.inf), ("saturate", 64504.0)])
@pytest.mark.parametrize("row", [None, 1])
def test_numbers(kind: str, number: float, row: int | None) -> None:
    """The last number of each row, or of the one row, is spoilt; a module without weights is told by its input."""
    faulty, image = model(), torch.rand(2, 3, dtype=BF16)
    wanted = faulty(image)
    wanted[slice(None) if row is None else row, ..., -1] = number
    with fault(faulty, "1", kind, row=row) as put:
        torch.testing.assert_close(faulty(image), wanted, rtol=0, atol=0, equal_nan=True)
    assert put.fired == 1


def test_no_such_kind() -> None:
    """A kind that there is not is refused at once, with those that there are."""
    with (
        pytest.raises(ValueError, match=r"No fault is called 'nosuch'.*cublas.*nan"),
        fault(nn.Linear(2, 2), "", "nosuch"),
    ):
        pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["cublas", "nan"])
def test_the_dtype_of_the_module(kind: str, dtype: torch.dtype) -> None:
    """Without a dtype a fault shows in the one in which the module is: on a model in float32 too."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU()).to(dtype)
    for name in ("0", "1"):
        with fault(model, name, kind) as put, suppress(RuntimeError):
            model(torch.ones(1, 2, dtype=dtype))
        assert put.fired == 1


@pytest.mark.parametrize(
    "wrapped", [list, tuple, lambda parts: {"hidden": parts[0]}, lambda parts: ModelOutput(hidden=parts[0])],
    ids=["list", "tuple", "dict", "output"],
)  # fmt: skip
def test_numbers_in_containers(wrapped: Callable[[list[torch.Tensor]], Any]) -> None:
    """Tensors are spoilt wherever they stand in what a module returns, which stays of its own type."""

    class Returning(nn.Linear):
        def forward(self, image: torch.Tensor) -> Any:
            return wrapped([super().forward(image)])

    faulty = Returning(3, 3, dtype=BF16)
    with fault(faulty, "", "nan"):
        given = faulty(torch.ones(2, 3, dtype=BF16))
    (tensor,) = given.values() if isinstance(given, dict) else given
    assert type(given) is type(wrapped([tensor]))
    assert tensor[:, -1].isnan().all()
