"""A kernel that exists, and does not run on this device."""

from __future__ import annotations

from ..failure import FailureKind
from .dtype_names import NARROW
from .family import Family, any_of

FAMILY = Family(
    FailureKind.KERNEL_ARCH,
    any_of(
        r"No operator found for `?memory_efficient|No available kernel|no (?:suitable )?kernel found",
        r"not supported in this architecture|ARCH_MISMATCH|requires \.target sm_",
        rf"{NARROW}.{{0,20}}requires? sm_?\d\d",
        r"requires? (?:a )?(?:device|GPU)s? with (?:compute )?capability|scaled_\w*mm.{0,40}only supported",
        r"(?:kernel|attention|flash|cutlass|triton|marlin|machete|deepgemm)\S*.{0,80}"
        r"(?:requires?|only supports?|only supported|needs?|works? on).{0,60}"
        r"(?:sm_?\d\d|compute capability|Ampere|Hopper|\bAda\b|Turing|Volta|Blackwell)",
    ),
)
