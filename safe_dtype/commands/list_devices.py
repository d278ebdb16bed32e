"""The devices that are known without being here: `safe-dtype plan --list-devices`. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from ..devices.priors import is_known_not_native, known_products
from ..facts import FLOAT32, DeviceFacts, VerdictKind
from ..rendering.tables import Column, Table, page, table
from ..rendering.units import bytes_text

_GROUPS = {"nvidia": "NVIDIA", "amd": "AMD", "intel_gpu": "Intel", "apple": "Apple (GPU)", "cpu": "CPUs"}
_OTHERS = "Others"
_MARKS = {VerdictKind.NATIVE: "", VerdictKind.UNKNOWN: "?"}
_NOTES = (
    "Native: at least about as fast as float32, and right, by published facts; with a question mark where no source "
    "tells. float32 runs on all of them.",
    "A size in the name is its memory: --device 'Apple M2 24 GB', 'AMD EPYC 9654 384 GB'. An architecture is a device, "
    "too: 'gfx1030', 'sm_75'.",
)


def list_devices(*, width: int) -> str:
    """Return the known products by maker, each with its usual memory and the 16-bit dtypes that are native on it."""
    return page([*_tables(), "", *_NOTES], width=width)


def _tables() -> Iterator[str | Table]:
    groups: dict[str, list[DeviceFacts]] = {name: [] for name in (*_GROUPS.values(), _OTHERS)}
    for product in known_products():
        groups[_GROUPS.get(product.vendor, _OTHERS)].append(product)
    for name, products in groups.items():
        columns = (Column(name, wraps=True), Column("memory", number=True), Column("native"))
        yield table(columns, (_row(product) for product in products))


def _row(product: DeviceFacts) -> tuple[str, str, str]:
    memory = bytes_text(product.memory.total_bytes) if product.memory.total_bytes else "varies"
    kinds = {
        verdict.dtype.name: verdict.kind
        for verdict in product.verdicts
        if verdict.dtype != FLOAT32 and not is_known_not_native(verdict.dtype, product)
    }
    native = [f"{name}{_MARKS[kind]}" for name, kind in sorted(kinds.items()) if kind in _MARKS]
    return product.device, memory, ", ".join(native) or "float32 alone"
