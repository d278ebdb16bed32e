"""What others found out about device families: `priors.json`, with sources. Imports no torch.

A prior orders the measurements and stands in for devices that nobody can measure here. It never overrules one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any

from ..errors import UnknownDeviceError
from ..facts import (
    BFLOAT16,
    COMPUTE,
    FLOAT16,
    FLOAT32,
    DeviceFacts,
    Dtype,
    MemoryFacts,
    Verdict,
    VerdictKind,
    dtype_named,
)
from .products import bytes_in, close_names, product_named

_SHORT = {BFLOAT16: "bf16", FLOAT16: "fp16"}  # as the traps call them
_CITED = 3  # sources named in a reason; priors.json has them all


@dataclass(frozen=True, slots=True)
class Prior:
    """One row of the table. None means that no source says."""

    family: str
    bf16_native: bool | None
    bf16_emulated: bool | None
    fp16_good: bool | None
    order: tuple[Dtype, ...]  # best first
    traps: tuple[str, ...]
    sources: tuple[str, ...]
    wrong: Mapping[str, str] = field(default_factory=dict, hash=False)  # dtype name -> what comes out
    crashes: Mapping[str, str] = field(default_factory=dict, hash=False)  # dtype name -> how the process ends

    def verdicts(self) -> tuple[Verdict, ...]:
        """Return what the row says about whole models in each compute dtype. There are no rates."""
        return tuple(Verdict(dtype, "matmul", *self._says(dtype)) for dtype in COMPUTE)

    def _says(self, dtype: Dtype) -> tuple[VerdictKind, str]:
        kind, words = self._kind(dtype)
        # As a word of its own: "is_bf16_supported() says True" tells nothing about bf16.
        mention = re.compile(rf"\b{_SHORT[dtype]}\b") if dtype in _SHORT and kind is not VerdictKind.WRONG else None
        trap = next((trap for trap in self.traps if mention and mention.search(trap)), "")
        explanation = f"{words}; {trap}" if trap else words
        return kind, f"{explanation}; published, not measured here ({', '.join(self.sources[:_CITED])})"

    def _kind(self, dtype: Dtype) -> tuple[VerdictKind, str]:
        if dtype.name in self.wrong:
            return VerdictKind.WRONG, self.wrong[dtype.name]
        if dtype.name in self.crashes:
            return VerdictKind.CRASHES, self.crashes[dtype.name]
        if dtype == FLOAT32:
            return VerdictKind.NATIVE, "float32 runs everywhere"
        return self._float16() if dtype == FLOAT16 else self._bfloat16()

    def _float16(self) -> tuple[VerdictKind, str]:
        if self.fp16_good is None:
            return VerdictKind.UNKNOWN, "sources do not agree about fp16"
        return (
            (VerdictKind.NATIVE, "fp16 is fast")
            if self.fp16_good
            else (VerdictKind.SLOW, "fp16 is no faster than float32")
        )

    def _bfloat16(self) -> tuple[VerdictKind, str]:
        if self.bf16_native:
            return VerdictKind.NATIVE, "bf16 is native"
        if self.bf16_emulated:
            return VerdictKind.SLOW, "bf16 is emulated"
        if self.bf16_native is None or self.bf16_emulated is None:
            return VerdictKind.UNKNOWN, "no source says whether bf16 runs"
        return VerdictKind.UNSUPPORTED, "it has no bf16"


def family_of(device: DeviceFacts) -> Prior | None:
    """Return the row for `device`: the first whose every condition holds."""
    for row in _table()["facts"]:
        if matches(row["match"], device):
            return _prior(row)
    return None


def is_known_not_native(dtype: Dtype, device: DeviceFacts) -> bool:
    """Whether a source says that `device` has no arithmetic of this dtype, even if none tells whether it runs."""
    prior = family_of(device)
    return dtype == BFLOAT16 and prior is not None and prior.bf16_native is False


def child_needed(device: DeviceFacts) -> str | None:
    """Return why kernels of `device` are measured in a child process, with the sources, or None."""
    for row in _table()["child_process"]:
        if matches(row["match"], device):
            return f"{row['why']} ({', '.join(row['source'])})"
    return None


def prior_facts(name: str) -> DeviceFacts:
    """Return what the table knows about a product that is not on this machine: "NVIDIA Tesla T4", "MI210", "gfx1030".

    A size in the name ("A100 80GB", "M2 24 GB") is its memory, else the product's usual one, else 0: unknown.

    Raises:
        UnknownDeviceError: If no product or family of this name is known; it lists the names that are close. So if the
            size in it is 0.
    """
    rows = _table()["names"]
    product = product_named(name, rows)
    if product is None or bytes_in(name) == 0:
        raise UnknownDeviceError(name, close_names(name, rows))
    return _facts(name, product)


def known_products() -> tuple[DeviceFacts, ...]:
    """Return what the table knows of every product in it, in its order, each with its usual memory."""
    return tuple(_facts(row["name"], row) for row in _table()["names"])


def _facts(name: str, product: Mapping[str, Any]) -> DeviceFacts:
    total = bytes_in(name) or product["gb"] * 10**9
    device = DeviceFacts(
        device=name,
        name=name if product["vendor"] == "cpu" else product["name"],
        memory=MemoryFacts(total, total, "device"),
        vendor=product["vendor"],
        capability=product["capability"],
        measured=False,
    )
    prior = family_of(device)
    if prior is None:
        raise UnknownDeviceError(name, ())
    return replace(
        device,
        verdicts=prior.verdicts(),
        family=prior.family,
        prior_order=prior.order,
        published=_published(product),
    )


def _published(product: Mapping[str, Any]) -> tuple[tuple[Dtype, float], ...]:
    peak = product.get("peak", {})
    return tuple((dtype, float(peak[dtype.name])) for dtype in COMPUTE if dtype.name in peak)


def matches(conditions: Mapping[str, Any], device: DeviceFacts) -> bool:
    """Whether every condition of a row holds for `device`."""
    return all(_HOLDS[key](value, device) for key, value in conditions.items())


def _cc(device: DeviceFacts) -> int:
    """Return 75 for compute capability 7.5, and 0 where there is none."""
    major, dot, minor = device.capability.partition(".")
    return int(major) * 10 + int(minor) if dot and (major + minor).isdigit() else 0


def _flags(device: DeviceFacts) -> set[str]:
    return set(device.capability.split())


_HOLDS: dict[str, Callable[[Any, DeviceFacts], bool]] = {
    "vendor": lambda value, device: device.vendor == value,
    "name_re": lambda value, device: re.search(value, device.name) is not None,
    "not_name_re": lambda value, device: re.search(value, device.name) is None,
    "cc": lambda value, device: _cc(device) == value,
    "cc_lt": lambda value, device: 0 < _cc(device) < value,
    "cc_ge": lambda value, device: _cc(device) >= value,
    "gfx_re": lambda value, device: re.search(value, device.capability) is not None,
    "chip_re": lambda value, device: re.search(value, device.capability) is not None,
    "arch": lambda value, device: value in _flags(device),
    "flags": lambda value, device: _flags(device) >= set(value),
    "flags_absent": lambda value, device: not _flags(device) & set(value),
}


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(files(__package__).joinpath("priors.json").read_text("utf-8"))
    return table


def _prior(row: Mapping[str, Any]) -> Prior:
    return Prior(
        family=row["family"],
        bf16_native=row["bf16_native"],
        bf16_emulated=row["bf16_emulated"],
        fp16_good=row["fp16_good"],
        order=tuple(dtype_named(name) for name in row["prior_order"]),
        traps=tuple(row["traps"]),
        sources=tuple(row["source"]),
        wrong=row.get("wrong", {}),
        crashes=row.get("crashes", {}),
    )
