"""How libraries spell floating dtypes, and which ones a text names or allows."""

from __future__ import annotations

import re

from ...facts import BFLOAT16, FLOAT8_E4M3, FLOAT16, FLOAT32, Dtype
from .family import any_of

# How libraries spell a floating dtype. Longest first: "bf16" holds "f16", "BFloat16" holds "Float16".
_SPELLINGS: tuple[tuple[Dtype, str], ...] = (
    (FLOAT8_E4M3, r"float8(?:_?e\d+m\d+\w*)?|f8e\dm\d\w*|fp8(?:e\d\w*)?|CUDA_R_8F\w*"),
    (BFLOAT16, r"bfloat16|bf16|N3c108BFloat16E?|CUDA_R_16BF|R_16BF"),
    (FLOAT16, r"float16|fp16|f16|half(?:tensor)?|N3c104HalfE?|CUDA_R_16F|R_16F|complexhalf|complex32"),
    (FLOAT32, r"float32|fp32|f32|float(?:tensor)?|CUDA_R_32F|R_32F"),
)
_DTYPE = re.compile(
    r"(?<![A-Za-z0-9])(?:MPS|DT_)?_?(?:"
    + "|".join(f"(?P<d{index}>{spelling})" for index, (_, spelling) in enumerate(_SPELLINGS))
    + r")(?:Type)?(?![A-Za-z0-9])",
    re.IGNORECASE,
)
# A dtype of 16 or 8 bits, as a part of a pattern.
NARROW = r"(?:torch\.)?(?:bfloat16|bf16|float16|fp16|half|float8\w*|fp8\w*)\b"
_INTEGER = re.compile(
    r"(?<![A-Za-z])(?:u?int(?:8|16|32|64)?|long(?: long)?|short|byte|(?:un)?(?:signed )?char|bool)(?:Tensor|Type)?"
    r"(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_NO_INTEGER = "bool or float"  # what attention says of its mask, before it names the dtypes that met
_ALLOWED = any_of(
    r"Supported dtypes:[^\n]*|support list \[[^\]]*\]|allowed values:[^\n]*|switch dtype to[^\n.]*",
    r"use (?:torch\.)?b?float\d+[^\n.]{0,20}|only supports? `?dtype[^\n]*|types other than [^\n]*",
    r"only supports? (?:the )?(?:torch\.)?(?:fp16|bf16|b?float16|half)[^\n]*?(?=,|\.\s|but|$)",
    r"expect\w* .{1,40}? to be [^,\n]*|must be (?:either )?(?:float|double)[^,\n]*",
    r"requires? (?:torch\.)?(?:bfloat16|float16)[^,\n]*|only b?f(?:loat|p)?16[^\n.]*(?:supported|allowed)",
)


def dtypes_in(text: str) -> tuple[Dtype, ...]:
    """Return every floating dtype that `text` names, in its order, each once."""
    indices = (int(str(match.lastgroup)[1:]) for match in _DTYPE.finditer(text))
    return tuple(dict.fromkeys(_SPELLINGS[index][0] for index in indices))


def allowed_dtypes_in(text: str) -> tuple[Dtype, ...]:
    """Return the dtypes that `text` says would work, in its order, each once."""
    return tuple(dict.fromkeys(dtype for match in _ALLOWED.finditer(text) for dtype in dtypes_in(match[0])))


def names_integers(text: str) -> bool:
    """Whether `text` names a dtype of integers, or bool."""
    return _INTEGER.search(text.replace(_NO_INTEGER, "")) is not None
