"""What torch says about a device without measuring, held against what was measured."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch

from ..facts import BFLOAT16, FLOAT16, Claim, Dtype, Verdict, VerdictKind
from .backend import answer_of

_CPU_FLAGS = ("amx_bf16", "avx512_bf16", "amx_fp16", "avx512_fp16", "bf16")
_MENTIONS = ((re.compile(r"bf16|bfloat16"), BFLOAT16), (re.compile(r"fp16|half"), FLOAT16))


def claims_about(device: str) -> tuple[Claim, ...]:
    """Return torch's own answers about `device`, the questions written as a user types them."""
    where = torch.device(device)
    ask = {"cpu": _cpu_claims, "cuda": _cuda_claims, "xpu": _xpu_claims, "mps": _mps_claims}
    return tuple(Claim(question, answer) for question, answer in ask.get(where.type, _plugin_claims)(where))


def with_disagreements(claims: Iterable[Claim], verdicts: Sequence[Verdict]) -> tuple[Claim, ...]:
    """Return `claims`, each with what the measurement of the matrix products says against it."""
    measured = {verdict.dtype: verdict for verdict in verdicts if verdict.op == "matmul"}
    return tuple(replace(claim, disagreement=_disagreement(claim, measured)) for claim in claims)


def _disagreement(claim: Claim, measured: dict[Dtype, Verdict]) -> str:
    dtype = next((dtype for mention, dtype in _MENTIONS if mention.search(claim.question)), None)
    verdict = measured.get(dtype) if dtype else None
    if verdict is None or verdict.kind is VerdictKind.UNKNOWN:
        return ""
    if claim.answer == "True" and verdict.kind is not VerdictKind.NATIVE:
        return f"{verdict.dtype} was measured {verdict.kind}: {verdict.reason}"
    # One absent instruction says nothing about the others, so a flag contradicts only by its presence.
    if claim.answer == "False" and verdict.kind is VerdictKind.NATIVE and "get_capabilities" not in claim.question:
        return f"{verdict.dtype} was measured native: {verdict.reason}"
    return ""


def _cpu_claims(_: torch.device) -> Iterable[tuple[str, str]]:
    ask = getattr(torch.cpu, "get_capabilities", None)  # younger than torch 2.6
    flags = ask() if ask else {}
    for flag in _CPU_FLAGS:
        if flag in flags:
            yield f"torch.cpu.get_capabilities()['{flag}']", str(flags[flag])
    for question in ("_is_mkldnn_bf16_supported", "_is_mkldnn_fp16_supported"):
        if hasattr(torch.ops.mkldnn, question):
            yield f"torch.ops.mkldnn.{question}()", str(getattr(torch.ops.mkldnn, question)())


def _cuda_claims(device: torch.device) -> Iterable[tuple[str, str]]:
    index = device.index or 0
    yield f"torch.cuda.get_device_capability({index})", str(torch.cuda.get_device_capability(index))
    with torch.cuda.device(index):  # is_bf16_supported asks the current device
        yield "torch.cuda.is_bf16_supported()", str(torch.cuda.is_bf16_supported())
        without = torch.cuda.is_bf16_supported(including_emulation=False)
        yield "torch.cuda.is_bf16_supported(including_emulation=False)", str(without)


def _xpu_claims(device: torch.device) -> Iterable[tuple[str, str]]:
    index = device.index or 0
    capability = torch.xpu.get_device_capability(index)
    for flag in ("has_fp16", "has_bfloat16_conversions"):
        if flag in capability:
            yield f"torch.xpu.get_device_capability({index})['{flag}']", str(capability[flag])
    with torch.xpu.device(index):
        yield "torch.xpu.is_bf16_supported()", str(torch.xpu.is_bf16_supported())
        without = torch.xpu.is_bf16_supported(including_emulation=False)
        yield "torch.xpu.is_bf16_supported(including_emulation=False)", str(without)


def _mps_claims(_: torch.device) -> Iterable[tuple[str, str]]:
    # transformers takes it for "bf16 runs" (utils/import_utils.py, is_torch_bf16_available_on_device).
    newer = torch.backends.mps.is_macos_or_newer(14, 0)
    yield "torch.backends.mps.is_macos_or_newer(14, 0)  # bf16", str(newer)


def _plugin_claims(device: torch.device) -> Iterable[tuple[str, str]]:
    become_current = getattr(getattr(torch, device.type, None), "device", None)
    with become_current(device.index or 0) if become_current else nullcontext():
        claim = answer_of(device.type, "is_bf16_supported")
    if claim is not None:
        yield f"torch.{device.type}.is_bf16_supported()", str(claim)
