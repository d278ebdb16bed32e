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
from safe_dtype.errors import UnknownDeviceError
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
        pytest.param("AMD EPYC 9654 1.5 TB", 1500, id="terabytes"),
        pytest.param("Raspberry Pi 4 8GB", 8, id="after-another-number"),
        pytest.param("Ryzen 7 8700G", 0, id="no-unit"),
        pytest.param("GeForce RTX 3060 Ti", 8, id="not-its-larger-sibling"),
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
    [("Tesla T5", "NVIDIA Tesla T4"), ("Instinct MI21", "AMD Instinct MI210"), ("RTX 6090 24 GB", "RTX 4090")],
)
def test_close_names(name: str, offered: str) -> None:
    """An unknown name is an error that offers those that are really close."""
    with pytest.raises(UnknownDeviceError, match=rf"is not known\. Close to it: .*{offered}") as caught:
        prior_facts(name)
    assert len(caught.value.found) <= 3


@pytest.mark.parametrize(
    ("name", "offered"),
    [("Xeon", "Intel Xeon"), ("intel", "Intel Xeon"), ("Tesla", "NVIDIA Tesla"), ("Core i7", "Intel Core")],
)
def test_names_of_a_word(name: str, offered: str) -> None:
    """A word that many names hold is answered with some of them, and with the list."""
    with pytest.raises(UnknownDeviceError, match=r"Close to it: .*--list-devices") as caught:
        prior_facts(name)
    assert 1 < len(caught.value.found) <= 6
    assert all(one.startswith(offered) for one in caught.value.found)


@pytest.mark.parametrize("name", ["toaster", "Abacus 3000", "cuda:0"])
def test_no_close_names(name: str) -> None:
    """A name that is close to none is not known, and no other product is offered in its place."""
    with pytest.raises(UnknownDeviceError, match=r"is not known\. Next: .*--list-devices") as caught:
        prior_facts(name)
    assert caught.value.found == ()


@pytest.mark.parametrize(
    ("name", "native"),
    [
        pytest.param("AMD EPYC 9654 96-Core Processor", "bf16", id="genoa"),
        pytest.param("AMD EPYC 9755", "bf16", id="turin"),
        pytest.param("AMD EPYC 9V74 80-Core Processor", "bf16", id="genoa-of-a-cloud"),
        pytest.param("AMD EPYC 7763 64-Core Processor", "", id="milan"),
        pytest.param("AMD EPYC 7B12", "", id="rome-of-a-cloud"),
        pytest.param("AMD EPYC 7551", "", id="naples"),
        pytest.param("AMD Ryzen 9 7950X 16-Core Processor", "bf16", id="zen4"),
        pytest.param("AMD Ryzen 7 7840U w/ Radeon 780M Graphics", "bf16", id="zen4-mobile"),
        pytest.param("AMD Ryzen 7 7735HS", "", id="zen3-sold-as-7000"),
        pytest.param("AMD Ryzen 5 7520U", "", id="zen2-sold-as-7000"),
        pytest.param("Ryzen 9 5950X", "", id="zen3"),
        pytest.param("Ryzen 7 9800X3D", "bf16", id="zen5"),
        pytest.param("AMD Ryzen AI 9 HX 370", "bf16", id="zen5-mobile"),
        pytest.param("AMD Ryzen Threadripper PRO 7995WX", "bf16", id="threadripper-zen4"),
        pytest.param("AMD Ryzen Threadripper 3990X", "", id="threadripper-zen2"),
        pytest.param("Intel(R) Xeon(R) Platinum 8480+", "bf16", id="sapphire-rapids"),
        pytest.param("Intel(R) Xeon(R) Platinum 8592+", "bf16", id="emerald-rapids"),
        pytest.param("Intel Xeon 6980P", "bf16", id="granite-rapids"),
        pytest.param("Intel Xeon 6780E", "", id="sierra-forest"),
        pytest.param("Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz", "", id="ice-lake"),
        pytest.param("Intel(R) Xeon(R) Platinum 8380H", "bf16", id="cooper-lake"),
        pytest.param("Intel(R) Xeon(R) Gold 6248 CPU @ 2.50GHz", "", id="cascade-lake"),
        pytest.param("Intel(R) Xeon(R) Gold 6140", "", id="skylake"),
        pytest.param("Intel(R) Xeon(R) CPU E5-2670 v3 @ 2.30GHz", "", id="haswell"),
        pytest.param("Intel(R) Core(TM) i7-8700K CPU @ 3.70GHz", "", id="core"),
        pytest.param("13th Gen Intel(R) Core(TM) i9-13900K", "", id="core-13"),
        pytest.param("Intel(R) Core(TM) Ultra 7 155H", "", id="core-ultra"),
        pytest.param("AWS Graviton4", "bf16 fp16", id="graviton4"),
        pytest.param("Graviton2", "", id="graviton2"),
        pytest.param("Ampere Altra Max", "", id="altra"),
        pytest.param("AmpereOne A192", "bf16 fp16", id="ampere-one"),
        pytest.param("Apple M1 CPU", "", id="m1"),
        pytest.param("Apple M2 Pro CPU", "bf16 fp16", id="m2"),
        pytest.param("Snapdragon X Elite", "bf16 fp16", id="oryon"),
        pytest.param("Snapdragon 8 Gen 3", "bf16 fp16", id="cortex-x4"),
        pytest.param("Snapdragon 888", "", id="cortex-x1"),
        pytest.param("Raspberry Pi 5 8GB", "", id="pi5"),
        pytest.param("Raspberry Pi 4 Model B", "", id="pi4"),
    ],
)
def test_processor(name: str, native: str) -> None:
    """A processor's name, as its system tells it, is enough to know which 16-bit dtypes it has arithmetic for."""
    facts = prior_facts(name)
    assert facts.vendor == "cpu"
    kinds = {"bf16": facts.verdict(BFLOAT16).kind, "fp16": facts.verdict(FLOAT16).kind}
    assert " ".join(dtype for dtype, kind in kinds.items() if kind is NATIVE) == native


def test_pi4_has_no_fp16_arithmetic() -> None:
    """Of a Cortex-A72 it is known that float16 gains nothing; of a Cortex-A76 nobody says."""
    assert prior_facts("Raspberry Pi 4").verdict(FLOAT16).kind is SLOW
    assert prior_facts("Raspberry Pi 5").verdict(FLOAT16).kind is UNKNOWN


def test_published_peaks() -> None:
    """The ratio of the maker's peak rates to float32's is known for products, and none is made up for an architecture."""
    assert dict(prior_facts("NVIDIA Tesla T4").published) == {FLOAT16: 8.0}
    assert prior_facts("sm_75").published == ()


def test_every_name_has_a_family() -> None:
    """Every product in the table resolves by its own name, to itself or a sibling of the same family."""
    for row in TABLE["names"]:
        mine = DeviceFacts("x", row["name"], NOTHING, vendor=row["vendor"], capability=row["capability"])
        family = family_of(mine)
        assert family is not None, row["name"]
        assert prior_facts(row["name"]).family == family.family, row["name"]


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
