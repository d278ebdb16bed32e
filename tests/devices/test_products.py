"""Names of products, as a person types them."""

from __future__ import annotations

import pytest

from safe_dtype.devices.products import bytes_in, close_names, is_a_place, product_named

ROWS = [
    {"re": r"\bt4\b", "name": "NVIDIA Tesla T4"},
    {"re": r"\brtx ?4090", "name": "NVIDIA GeForce RTX 4090"},
    {"re": r"\bmi210", "name": "AMD Instinct MI210"},
    {"re": r"\bgenoa", "name": "AMD EPYC 9004 (Genoa)"},
]


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:0", "MPS", "xpu:1", " cuda:3 "])
def test_place(name: str) -> None:
    """What torch calls a device of a machine is no product."""
    assert is_a_place(name)


@pytest.mark.parametrize("name", ["T4", "cuda card", "NVIDIA", "cpu 16 GB", "gfx1030", ""])
def test_no_place(name: str) -> None:
    """Everything else may be one."""
    assert not is_a_place(name)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("A100-SXM4-80GB", 80e9),
        ("Apple M2 24 GB", 24e9),
        ("EPYC 9654 1.5 TB", 1.5e12),
        ("RTX 4090 24 GiB", 24 * 2**30),
        ("Raspberry Pi 4 8gb", 8e9),
        ("NVIDIA H100 1 MB", 1e6),
        ("Arduino 512KiB", 512 * 2**10),
        ("EPYC 9654 1,5 TB", 1.5e12),
        ("T4 0 GB", 0),
        ("Ryzen 7 8700G", None),
        ("i5-1135G7", None),
        ("T4", None),
    ],
)
def test_size(name: str, size: float | None) -> None:
    """A number with its unit is the memory; a letter of the product's own is not."""
    assert bytes_in(name) == size


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("Tesla T5", ("NVIDIA Tesla T4",)),
        ("NVIDIA Tesla T5 16 GB", ("NVIDIA Tesla T4",)),
        ("RTX 6090", ("NVIDIA GeForce RTX 4090",)),
        ("Instinct MI21", ("AMD Instinct MI210",)),
        ("EPYC 9005", ("AMD EPYC 9004 (Genoa)",)),
        ("Abacus 3000", ()),
        ("toaster", ()),
        ("NVIDIA", ("NVIDIA Tesla T4", "NVIDIA GeForce RTX 4090")),
        ("tesla", ("NVIDIA Tesla T4",)),
        ("Tesla 16 MB", ("NVIDIA Tesla T4",)),
        ("EPYC i7", ("AMD EPYC 9004 (Genoa)",)),
        ("", ()),
    ],
)
def test_close(name: str, close: tuple[str, ...]) -> None:
    """One wrong digit is close, and so is a name that holds the word; another product line is not, whoever makes it."""
    assert close_names(name, ROWS) == close


def test_architecture() -> None:
    """An architecture needs no row."""
    gfx, turing = product_named("gfx1030", ()), product_named("sm_75", ())
    assert gfx is not None
    assert turing is not None
    assert (gfx["vendor"], gfx["capability"]) == ("amd", "gfx1030")
    assert (turing["vendor"], turing["capability"]) == ("nvidia", "7.5")
    assert product_named("x", ROWS) is None
