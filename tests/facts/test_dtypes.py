"""What a dtype says of its format is what torch says."""

from __future__ import annotations

import pytest
import torch

from safe_dtype.facts import dtypes


@pytest.mark.parametrize("dtype", dtypes.ALL, ids=str)
def test_dtype_facts(dtype: dtypes.Dtype) -> None:
    """A Dtype says of its format what torch says."""
    theirs = getattr(torch, dtype.name)
    assert dtype.itemsize == theirs.itemsize
    assert dtype.is_floating_point == theirs.is_floating_point
    if dtype.is_floating_point:
        finfo = torch.finfo(theirs)
        assert (dtype.largest, dtype.smallest_normal, dtype.epsilon) == (finfo.max, finfo.smallest_normal, finfo.eps)
    else:
        assert dtype.largest == torch.iinfo(theirs).max


@pytest.mark.parametrize("wide", dtypes.ALL, ids=str)
@pytest.mark.parametrize("narrow", [one for one in dtypes.ALL if one.is_floating_point], ids=str)
def test_holds(wide: dtypes.Dtype, narrow: dtypes.Dtype) -> None:
    """`holds` agrees with casting every value (or a dense sample of float32) there and back."""
    if wide.is_floating_point and narrow.itemsize <= 2:
        kind = {1: torch.uint8, 2: torch.int16}[narrow.itemsize]
        bits = torch.arange(2 ** (8 * narrow.itemsize)).to(kind)
        values = bits.view(getattr(torch, narrow.name)).float()
        values = values[values.isfinite()]
        back = values.to(getattr(torch, wide.name)).float()
        assert wide.holds(narrow) == bool((back == values).all())
    else:
        assert wide.holds(narrow) == (wide == narrow)


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("bf16", dtypes.BFLOAT16),
        ("torch.float16", dtypes.FLOAT16),
        (" FP32 ", dtypes.FLOAT32),
        ("fp8", dtypes.FLOAT8_E4M3),
    ],
)
def test_dtype_named(text: str, dtype: dtypes.Dtype) -> None:
    """Torch's names and the usual short ones are read."""
    assert dtypes.dtype_named(text) == dtype
