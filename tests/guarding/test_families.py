"""Families of failure texts: one file each, in an order that is written down."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path

import pytest

from safe_dtype.guarding import FailureKind, classify, families
from safe_dtype.guarding.families import FAMILIES
from safe_dtype.guarding.families.family import Family

FOLDER = Path(str(families.__file__)).parent


def test_order() -> None:
    """The first family with a matching text decides, so their order is a decision of its own."""
    assert [family.kind for family in FAMILIES] == [
        FailureKind.NONFINITE, FailureKind.EXPORT_GRAPH, FailureKind.KERNEL_ARCH, FailureKind.POLICY_REFUSAL,
        FailureKind.DTYPE_MISMATCH, FailureKind.OP_UNSUPPORTED,
    ]  # fmt: skip


def test_every_file_has_its_place() -> None:
    """A family is one file: it is found by its `FAMILY`, and stands once in the order."""
    modules = (import_module(f"{families.__name__}.{found.name}") for found in pkgutil.iter_modules([str(FOLDER)]))
    in_files = [vars(module)["FAMILY"] for module in modules if "FAMILY" in vars(module)]
    assert len(in_files) == len(FAMILIES)
    assert all(sum(family is listed for listed in FAMILIES) == 1 for family in in_files)
    assert all(isinstance(family, Family) for family in in_files)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        pytest.param("NaN found: fp16 is not supported", FailureKind.NONFINITE, id="nan-before-op"),
        pytest.param("Failed to export: bfloat16 is not supported", FailureKind.EXPORT_GRAPH, id="export-before-op"),
        pytest.param("bf16 requires sm_80, not supported", FailureKind.KERNEL_ARCH, id="arch-before-policy-and-op"),
        pytest.param("GPU does not support bfloat16", FailureKind.POLICY_REFUSAL, id="policy-before-op"),
        pytest.param("dtypes must match: fp16 is not supported", FailureKind.DTYPE_MISMATCH, id="mismatch-before-op"),
    ],
)
def test_texts_of_two_families(text: str, kind: FailureKind) -> None:
    """A text that two families would take is the earlier one's."""
    assert sum(family.texts.search(text) is not None for family in FAMILIES) > 1
    failure = classify(RuntimeError(text))
    assert failure is not None
    assert failure.kind is kind


def test_the_first_family_has_the_last_word() -> None:
    """A mismatch of integers is nobody's, though a later family would take its text."""
    text = "dtypes must match: Long and float16 is not supported"
    assert FAMILIES[-1].texts.search(text)
    assert classify(RuntimeError(text)) is None


def test_texts_are_in_one_place() -> None:
    """No other module of the package looks at a foreign text."""
    for module in FOLDER.parent.rglob("*.py"):
        if FOLDER not in module.parents:
            assert "not implemented" not in module.read_text(encoding="utf-8"), module
