"""A library that refuses a dtype by a table or a setting of its own."""

from __future__ import annotations

from ..failure import FailureKind
from .dtype_names import NARROW
from .family import Family, any_of

FAMILY = Family(
    FailureKind.POLICY_REFUSAL,
    any_of(
        r"unsupported ScalarType|\bB?float16 is only supported on GPUs|Supported dtypes:|only supports? `?dtype",
        rf"(?:doesn't|does not|do not|cannot|can't) support (?:\w+ )?{NARROW}|data type '?{NARROW}'? not understood",
        rf"{NARROW}.{{0,30}}\brequested\b|requested .{{0,20}}{NARROW}.{{0,20}}compute type|AMP is not supported",
        rf"(?:path|backend|method|quantization|model|loader|trainer)\w* .{{0,40}}(?:requires?|only supports?) .{{0,20}}{NARROW}",
        rf"unscale FP16 gradients|prepack needs|type {NARROW} is not supported|not supported for quantization",
        r"mixed precision .{0,40}(?:requires|is not supported)|(?:fp16|bf16|half precision)\b.{0,120}can only be used",
        r"Your (?:setup|GPU|device|hardware|CPU)\b.{0,30}(?:not|n't) support|(?:bf16|fp16)\b.{0,40}(?:need|require)s? Ampere",
        rf"can(?:no|')t use {NARROW}|(?:compute capability|Ampere|Hopper)\b.{{0,40}}{NARROW}",
        rf"{NARROW}.{{0,60}}(?:requires?|needs?|only available|only works).{{0,40}}(?:capability|Ampere|Hopper|CUDA|GPU)",
        rf"(?:GPU|device|hardware|CPU|platform|card)\b.{{0,30}}(?:not|n't) support.{{0,20}}{NARROW}",
    ),
)
