"""What torch claims, beside what was measured."""

from __future__ import annotations

import pytest
import torch

from safe_dtype.devices import detect_one
from safe_dtype.devices.claims import claims_about, with_disagreements
from safe_dtype.facts import BFLOAT16, FLOAT16, Claim, Dtype, Verdict, VerdictKind

EMULATES = "torch.cuda.is_bf16_supported()"
FLAG = "torch.cpu.get_capabilities()['amx_bf16']"
MKLDNN = "torch.ops.mkldnn._is_mkldnn_fp16_supported()"


def verdict(dtype: Dtype, kind: VerdictKind, op: str = "matmul") -> Verdict:
    """Return a verdict with a reason to be quoted."""
    return Verdict(dtype, op, kind, "6.2x float32's time at 512 rows")


@pytest.mark.parametrize(
    ("question", "answer", "found", "disagrees"),
    [
        pytest.param(EMULATES, "True", verdict(BFLOAT16, VerdictKind.SLOW), True, id="t4-counts-emulation"),
        pytest.param(EMULATES, "True", verdict(BFLOAT16, VerdictKind.WRONG), True, id="wrong"),
        pytest.param(EMULATES, "True", verdict(BFLOAT16, VerdictKind.CRASHES), True, id="crashes"),
        pytest.param(EMULATES, "True", verdict(BFLOAT16, VerdictKind.NATIVE), False, id="agrees"),
        pytest.param(EMULATES, "True", verdict(BFLOAT16, VerdictKind.UNKNOWN), False, id="nobody-measured"),
        pytest.param(EMULATES, "True", verdict(FLOAT16, VerdictKind.SLOW), False, id="another-dtype"),
        pytest.param(
            EMULATES, "True", verdict(BFLOAT16, VerdictKind.SLOW, "attention"), False, id="another-operation"
        ),
        pytest.param(EMULATES, "False", verdict(BFLOAT16, VerdictKind.SLOW), False, id="no-and-slow-agree"),
        pytest.param(EMULATES, "False", verdict(BFLOAT16, VerdictKind.NATIVE), True, id="no-but-native"),
        pytest.param(
            FLAG, "True", verdict(BFLOAT16, VerdictKind.SLOW), True, id="amx-is-there-but-onednn-may-not-use-it"
        ),
        pytest.param(FLAG, "False", verdict(BFLOAT16, VerdictKind.NATIVE), False, id="native-by-another-instruction"),
        pytest.param(MKLDNN, "True", verdict(FLOAT16, VerdictKind.SLOW), True, id="fp16"),
        pytest.param(
            "torch.cuda.get_device_capability(0)", "(7, 5)", verdict(BFLOAT16, VerdictKind.SLOW), False, id="number"
        ),
    ],
)
def test_disagreement(question: str, answer: str, found: Verdict, disagrees: bool) -> None:
    """A claim that the matrix products contradict says so, with the measured ratio."""
    (claim,) = with_disagreements([Claim(question, answer)], [found])
    assert bool(claim.disagreement) == disagrees
    assert not disagrees or found.reason in claim.disagreement


def test_cpu_claims() -> None:
    """The questions are written as a user types them, and the answers are torch's."""
    for claim in claims_about("cpu"):
        assert str(eval(claim.question, {"torch": torch})) == claim.answer


@pytest.mark.needs("cuda")
def test_cuda_claims() -> None:
    """What a user asks a CUDA device by hand is in the report."""
    claims = {claim.question: claim.answer for claim in detect_one("cuda").claims}
    assert claims["torch.cuda.get_device_capability(0)"] == str(torch.cuda.get_device_capability(0))
    assert claims["torch.cuda.is_bf16_supported()"] == str(torch.cuda.is_bf16_supported())
    assert "torch.cuda.is_bf16_supported(including_emulation=False)" in claims


@pytest.mark.needs("xpu")
def test_xpu_claims() -> None:
    """The default question counts emulation, so the other one is asked too."""
    assert "torch.xpu.is_bf16_supported(including_emulation=False)" in {one.question for one in claims_about("xpu:0")}


@pytest.mark.needs("mps")
def test_mps_claims() -> None:
    """What transformers asks is there, the version of macOS."""
    assert any("is_macos_or_newer" in claim.question for claim in claims_about("mps:0"))
