"""An operation that has no kernel for a dtype on this device."""

from __future__ import annotations

from ...facts import Dtype
from ..failure import FailureKind
from .dtype_names import NARROW
from .family import Family, any_of

# These need no dtype in their text.
_WITHOUT_A_DTYPE = any_of(
    r"STATUS_NOT_SUPPORTED|miopenStatusNotImplemented|cuDNN algorithm|find an engine|either float or double",
    r"other than float and double",
)


def _is_about_dtypes(text: str, dtypes: tuple[Dtype, ...]) -> bool:
    return bool(dtypes) or _WITHOUT_A_DTYPE.search(text) is not None


FAMILY = Family(
    FailureKind.OP_UNSUPPORTED,
    any_of(
        r"not implemented for|not_implemented|unsupported (?:data ?type|dtype|scalar ?type|(?:input |tensor )?type|floating)",
        r"(?:doesn't|does not|don't|not) (?:support|handle) (?:tensors? of )?(?:type|dtype|low precision|half|b?float)",
        r"Low[- ]precision dtypes? not supported|must be (?:either |of |in )?(?:dtype of |a )?(?:torch\.)?(?:float|double|fp16|bf16|half|bfloat)",
        rf"{NARROW}.{{0,30}}(?:is|are|was|not) (?:currently )?(?:not )?(?:yet )?(?:supported|implemented|available)",
        rf"(?:not|un)[- ]?support(?:ed)?.{{0,40}}\b{NARROW}|{NARROW}.{{0,40}}\bonly supported",
        rf"expect\w* .{{1,40}} to be {NARROW}|only supports? (?:the )?{NARROW}|not in the list of allowed values",
        r"(?:CUBLAS|CUDNN|HIPBLAS|CUSPARSE)_STATUS_NOT_SUPPORTED|miopenStatusNotImplemented|UNIMPLEMENTED",
        r"(?:EXECUTION_FAILED|illegal memory access|requested functionality is not supported).*R_16B?F",
        rf"floating point or complex tensor as input.{{0,10}}{NARROW}",
        r"valid cuDNN algorithm|find an engine|powers of two when computing in half|path needs the cpu support",
        rf"Promotion for Float8|Unable to load kernel .*{NARROW}|no (?:kernel|implementation).{{0,60}}{NARROW}",
    ),
    is_curable=_is_about_dtypes,
)
