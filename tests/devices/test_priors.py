"""The prior table: products typed by a user resolve to a family, and the family to verdicts that nobody measured."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.resources import files
from typing import Any

import pytest

from safe_dtype.devices.priors import child_needed, family_of, matches, prior_facts
from safe_dtype.errors import NoSuchDeviceError
from safe_dtype.facts import (
    BFLOAT16,
    COMPUTE,
    FLOAT16,
    FLOAT32,
    DeviceFacts,
    Dtype,
    MemoryFacts,
    VerdictKind,
    dtype_named,
)

TABLE: dict[str, Any] = json.loads(files("safe_dtype.devices").joinpath("priors.json").read_text("utf-8"))
GB = 10**9
NOTHING = MemoryFacts(0, 0, "device")
NATIVE, SLOW, WRONG, UNKNOWN = VerdictKind.NATIVE, VerdictKind.SLOW, VerdictKind.WRONG, VerdictKind.UNKNOWN


@pytest.mark.parametrize(
    ("name", "bf16", "fp16", "order"),
    [
        pytest.param("A100", NATIVE, NATIVE, (BFLOAT16, FLOAT16, FLOAT32), id="a100"),
        pytest.param("NVIDIA H100 80GB HBM3", NATIVE, NATIVE, (BFLOAT16, FLOAT16, FLOAT32), id="h100"),
        pytest.param("L4", NATIVE, NATIVE, (BFLOAT16, FLOAT16, FLOAT32), id="l4"),
        pytest.param("RTX 3090", NATIVE, NATIVE, (BFLOAT16, FLOAT16, FLOAT32), id="rtx3090"),
        pytest.param("RTX 4090", NATIVE, NATIVE, (BFLOAT16, FLOAT16, FLOAT32), id="rtx4090"),
        pytest.param("NVIDIA Tesla T4", SLOW, NATIVE, (FLOAT16, FLOAT32), id="t4"),
        pytest.param("T4", SLOW, NATIVE, (FLOAT16, FLOAT32), id="t4-short"),
        pytest.param("RTX 2080", SLOW, NATIVE, (FLOAT16, FLOAT32), id="rtx2080"),
        pytest.param("V100", SLOW, NATIVE, (FLOAT16, FLOAT32), id="v100"),
        pytest.param("GeForce GTX 1660 Ti", SLOW, WRONG, (FLOAT32,), id="gtx1660-fp16-is-broken"),
        pytest.param("Tesla P40", SLOW, SLOW, (FLOAT32,), id="p40"),
        pytest.param("Apple M1", SLOW, NATIVE, (FLOAT16, FLOAT32), id="m1"),
        pytest.param("M3 Pro", NATIVE, NATIVE, (BFLOAT16, FLOAT16, FLOAT32), id="m3"),
        pytest.param("AMD Instinct MI210", NATIVE, NATIVE, (BFLOAT16, FLOAT16, FLOAT32), id="mi210"),
        pytest.param("MI250", NATIVE, NATIVE, (BFLOAT16, FLOAT16, FLOAT32), id="mi250"),
        pytest.param("MI300X", NATIVE, NATIVE, (BFLOAT16, FLOAT16, FLOAT32), id="mi300x"),
        pytest.param("Radeon RX 6800 (RDNA2)", SLOW, NATIVE, (FLOAT16, FLOAT32), id="rdna2"),
        pytest.param("gfx1030", SLOW, NATIVE, (FLOAT16, FLOAT32), id="rdna2-by-arch"),
        pytest.param("Radeon RX 7900", NATIVE, UNKNOWN, (BFLOAT16, FLOAT16, FLOAT32), id="rdna3"),
        pytest.param("Intel(R) Arc(TM) A770 Graphics", UNKNOWN, NATIVE, (FLOAT16, FLOAT32), id="a770"),
        pytest.param("Intel Arc B580", WRONG, WRONG, (FLOAT32,), id="b580-16-bit-is-wrong"),
        pytest.param("AVX2 CPU", SLOW, SLOW, (FLOAT32,), id="avx2"),
        pytest.param("AMX CPU", NATIVE, UNKNOWN, (BFLOAT16, FLOAT32), id="amx"),
        pytest.param("Graviton2", SLOW, UNKNOWN, (FLOAT32, FLOAT16), id="graviton2"),
        pytest.param("Graviton3", NATIVE, NATIVE, (BFLOAT16, FLOAT32), id="graviton3"),
        pytest.param("Ascend 910B", NATIVE, NATIVE, (BFLOAT16, FLOAT16, FLOAT32), id="ascend"),
        pytest.param("sm_75", SLOW, NATIVE, (FLOAT16, FLOAT32), id="capability-alone"),
    ],
)
def test_product(name: str, bf16: VerdictKind, fp16: VerdictKind, order: tuple[Dtype, ...]) -> None:
    """A product's name is enough for verdicts, an order of trying, and the statement that nobody measured."""
    facts = prior_facts(name)
    assert (facts.verdict(BFLOAT16).kind, facts.verdict(FLOAT16).kind) == (bf16, fp16)
    assert facts.verdict(FLOAT32).kind is NATIVE
    assert facts.prior_order == order
    assert not facts.measured
    assert facts.family


@pytest.mark.parametrize("name", ["NVIDIA Tesla T4", "GTX 1660", "AVX2 CPU", "M1"])
def test_reason_names_its_source(name: str) -> None:
    """Every verdict says that it comes from the table, and who said so; no rate is made up."""
    facts = prior_facts(name)
    sources = next(row["source"] for row in TABLE["facts"] if row["family"] == facts.family)
    for verdict in facts.verdicts:
        assert "not measured" in verdict.reason
        assert sources[0] in verdict.reason
        assert verdict.decode_bytes_per_s is None
        assert verdict.prefill_flops_per_s is None


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [
        pytest.param("NVIDIA Tesla T4", 16, id="of-the-product"),
        pytest.param("Tesla V100-SXM2-16GB", 16, id="in-the-name"),
        pytest.param("Tesla V100-SXM2-32GB", 32, id="the-larger-one"),
        pytest.param("NVIDIA A100-SXM4-80GB", 80, id="twice-the-usual"),
        pytest.param("Apple M2 24 GB", 24, id="unified"),
        pytest.param("AVX2 CPU", 0, id="unknown"),
    ],
)
def test_memory_of_a_product(name: str, gigabytes: int) -> None:
    """A size in the name wins over the product's usual one; 0 where neither says."""
    assert prior_facts(name).memory == MemoryFacts(gigabytes * GB, gigabytes * GB, "device")


def test_gtx_1660_carries_the_trap() -> None:
    """A format that comes out wrong says how."""
    assert "NaN" in prior_facts("GTX 1660").verdict(FLOAT16).reason


@pytest.mark.parametrize(
    ("name", "offered"),
    [("Tesla T5", "NVIDIA Tesla T4"), ("Instinct MI21", "AMD Instinct MI210"), ("toaster", "NVIDIA")],
)
def test_unknown_product(name: str, offered: str) -> None:
    """An unknown name is an error that offers known ones."""
    with pytest.raises(NoSuchDeviceError, match=offered):
        prior_facts(name)


def test_every_name_has_a_family() -> None:
    """Every product in the table resolves by its own name, to itself or a sibling of the same family."""
    for row in TABLE["names"]:
        mine = DeviceFacts("x", row["name"], NOTHING, vendor=row["vendor"], capability=row["capability"])
        family = family_of(mine)
        assert family is not None, row["name"]
        assert row["vendor"] == "cpu" or prior_facts(row["name"]).family == family.family, row["name"]


def test_every_row_is_complete() -> None:
    """Every family names its sources and an order that ends where everything runs."""
    for row in TABLE["facts"]:
        assert row["source"], row["family"]
        assert {dtype_named(name) for name in row["prior_order"]} <= set(COMPUTE)
        assert FLOAT32 in [dtype_named(name) for name in row["prior_order"]]
        matches(row["match"], DeviceFacts("x", "x", NOTHING))  # every condition is known
    for row in TABLE["names"]:
        re.compile(row["re"])


@pytest.mark.parametrize(
    ("name", "source"),
    [
        pytest.param("gfx1030", "unsloth#7922", id="rdna2"),
        pytest.param("gfx1102", "sdnext#3833", id="gfx1102"),
        pytest.param("M2", "executorch#7904", id="mps"),
        pytest.param("gfx1100", None, id="rdna3"),
        pytest.param("A100", None, id="nvidia"),
        pytest.param("AVX2 CPU", None, id="cpu"),
    ],
)
def test_child_needed(name: str, source: str | None) -> None:
    """Kernels known to end the process are measured in a child; the list names who saw it."""
    why = child_needed(prior_facts(name))
    assert why is None if source is None else why is not None and source in why


def test_needs_no_torch() -> None:
    """Planning for a device that is not here does not import torch."""
    code = (
        "import sys; from safe_dtype.devices import prior_facts; prior_facts('T4'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
