"""What another dtype does not cure: by class, by text, and by what is left of the device."""

from __future__ import annotations

import json

import pytest
import torch

from safe_dtype.errors import SafeDtypeError
from safe_dtype.guarding.families.refused import is_refused, is_sticky
from safe_dtype.testing import TEXTS

NOT_IMPLEMENTED = "\"addmm_impl_cpu_\" not implemented for 'Half'"


class OutOfResources(Exception):  # noqa: N818  # triton's own name
    """A class of a library that is not here, known by its name."""


class Later(OutOfResources):
    """One that a later version derives from it."""


@pytest.mark.parametrize(
    "exception",
    [
        pytest.param(MemoryError(), id="memory"),
        pytest.param(torch.OutOfMemoryError(NOT_IMPLEMENTED), id="torch-memory"),
        pytest.param(KeyError("bfloat16"), id="key"),
        pytest.param(FileNotFoundError("float16"), id="a-file"),
        pytest.param(ModuleNotFoundError("bf16"), id="a-package"),
        pytest.param(json.JSONDecodeError(NOT_IMPLEMENTED, "", 0), id="json"),
        pytest.param(ZeroDivisionError(NOT_IMPLEMENTED), id="arithmetic"),
        pytest.param(OutOfResources(NOT_IMPLEMENTED), id="by-name"),
        pytest.param(Later(NOT_IMPLEMENTED), id="by-the-name-of-its-base"),
        pytest.param(SafeDtypeError(NOT_IMPLEMENTED), id="our-own"),
        pytest.param(KeyboardInterrupt(NOT_IMPLEMENTED), id="the-user"),
        pytest.param(SystemExit(NOT_IMPLEMENTED), id="the-end"),
    ],
)
def test_by_class(exception: BaseException) -> None:
    """Some classes are refused whatever they say, those derived from them too."""
    assert is_refused(exception, str(exception))


@pytest.mark.parametrize("make", [RuntimeError, NotImplementedError, TypeError, ValueError, FloatingPointError])
def test_classes_of_which_the_text_decides(make: type[Exception]) -> None:
    """What torch raises for a dtype is not refused for its class; nor is an overflow, though it is arithmetic."""
    assert not is_refused(make(NOT_IMPLEMENTED), NOT_IMPLEMENTED)
    assert is_refused(make(TEXTS["shape"]), TEXTS["shape"])


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(TEXTS["out_of_memory"], id="memory"),
        pytest.param("cuda OUT OF MEMORY in float16", id="in-any-case"),
        pytest.param("float16\nand then\nTried to allocate 2 GiB", id="in-a-later-line"),
        pytest.param("size mismatch for lm_head.weight: Half", id="shapes"),
        pytest.param("index out of range in self, bfloat16", id="indices"),
        pytest.param("Expected all tensors to be on the same device, Half", id="devices"),
        pytest.param(
            "Input type (torch.cuda.HalfTensor) and weight type (torch.HalfTensor) should be", id="two-places"
        ),
        pytest.param("The NVIDIA driver on your system is too old for bfloat16", id="driver"),
        pytest.param("Unrecognized model in float16", id="configuration"),
        pytest.param("tensors used as indices must be long, not Half", id="integers"),
    ],
)
def test_by_text(text: str) -> None:
    """The same of texts about memory, shapes, indices, devices, drivers and files, whatever dtype they name."""
    assert is_refused(RuntimeError(text), text)
    assert not is_sticky(text)


@pytest.mark.parametrize("name", ["cublas", "not_implemented", "mismatch", "kernel_arch", "sticky"])
def test_what_a_dtype_cures(name: str) -> None:
    """The texts of failures that another dtype cures come through."""
    assert not is_refused(RuntimeError(TEXTS[name]), TEXTS[name])


def test_two_gpu_types_are_no_two_places() -> None:
    """Two kinds of tensors on the same GPU are a matter of dtypes."""
    text = "Input type (torch.cuda.FloatTensor) and weight type (torch.cuda.HalfTensor) should be the same"
    assert not is_refused(RuntimeError(text), text)


def test_real_ones() -> None:
    """What this torch says of wrong shapes, indices and devices is refused; what it says of dtypes is not."""

    def said(call: object) -> BaseException:
        with pytest.raises((RuntimeError, IndexError, TypeError)) as caught:
            call()  # type: ignore[operator]
        return caught.value

    half = torch.ones(2, 3, dtype=torch.float16)
    for call in (
        lambda: half @ half,
        lambda: half + torch.ones(2, 4),
        lambda: half.view(5),
        lambda: torch.nn.functional.embedding(torch.tensor([7]), half),
        lambda: half[half],
        lambda: torch.cat([half, torch.ones(3, 4, dtype=torch.float16)]),
    ):
        error = said(call)
        assert is_refused(error, str(error)), error
    for call in (lambda: half.T @ torch.ones(2, 3), lambda: torch.linalg.svd(half)):
        error = said(call)
        assert not is_refused(error, str(error)), error


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        pytest.param("CUDA error: device-side assert triggered", True, id="any-assert"),
        pytest.param("CUDA error: an illegal memory access was encountered", True, id="illegal-access"),
        pytest.param("HSA_STATUS_ERROR_EXCEPTION", True, id="rocm"),
        pytest.param("unspecified launch failure in gemm with CUDA_R_16BF", False, id="of-16-bits"),
        pytest.param("device-side assert: probability tensor contains either `inf`, `nan` or element < 0", False, id="nan"),
    ],
)  # fmt: skip
def test_a_lost_device(text: str, refused: bool) -> None:
    """An assert or an illegal access takes the device; it is of a dtype only where NaN or a 16-bit kernel is named."""
    assert is_sticky(text)
    assert is_refused(RuntimeError(text), text) is refused
