"""The number formats safe_dtype chooses between. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UnknownDtypeError


@dataclass(frozen=True, slots=True)
class Dtype:
    """One number format. `largest`, `smallest_normal` and `epsilon` mean what `torch.finfo` means by them."""

    name: str  # torch's own name: getattr(torch, name)
    itemsize: int  # bytes per number
    largest: float
    smallest_normal: float
    epsilon: float  # 0.0 for integers

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<Dtype {self.name}>"

    @property
    def is_floating_point(self) -> bool:
        """Whether this is a floating format."""
        return self.epsilon > 0

    def holds(self, other: Dtype) -> bool:
        """Whether every value of `other` is a value of this format, so that a cast loses nothing.

        Subnormals count: bfloat16 reaches down to 2**-133 and float32 to 2**-149, so float32 holds it.
        """
        return (
            self.largest >= other.largest
            and self.epsilon <= other.epsilon
            and self.smallest_normal * self.epsilon <= other.smallest_normal * other.epsilon
        )


FLOAT32 = Dtype("float32", 4, 3.4028234663852886e38, 1.1754943508222875e-38, 1.1920928955078125e-07)
BFLOAT16 = Dtype("bfloat16", 2, 3.3895313892515355e38, 1.1754943508222875e-38, 0.0078125)
FLOAT16 = Dtype("float16", 2, 65504.0, 6.103515625e-05, 0.0009765625)
FLOAT8_E4M3 = Dtype("float8_e4m3fn", 1, 448.0, 0.015625, 0.125)
INT8 = Dtype("int8", 1, 127.0, 1.0, 0.0)
# torch names it, and has no numbers of it; two of them share a byte where weights are held in it: see `Coding`.
INT4 = Dtype("int4", 1, 7.0, 1.0, 0.0)

# What tensors can be of.
ALL = (FLOAT32, BFLOAT16, FLOAT16, FLOAT8_E4M3, INT8)
COMPUTE = (FLOAT32, BFLOAT16, FLOAT16)  # the formats a whole transformers model can run in

# Numbers of a weight in float32 below which it is not held in 16 bit: the calls around its products are worth more than the bytes.
LEAST_NARROWED = 2**18

_ALIASES = {
    "fp32": FLOAT32, "float": FLOAT32, "full": FLOAT32,
    "bf16": BFLOAT16,
    "fp16": FLOAT16, "half": FLOAT16,
    "fp8": FLOAT8_E4M3, "float8": FLOAT8_E4M3, "float8_e4m3": FLOAT8_E4M3,
}  # fmt: skip
_BY_NAME = {dtype.name: dtype for dtype in (*ALL, INT4)} | _ALIASES


def dtype_named(name: str) -> Dtype:
    """Return the format called `name`: torch's name, with or without `torch.`, or a usual short one (`bf16`).

    Raises:
        UnknownDtypeError: If there is no such format here.
    """
    try:
        return _BY_NAME[name.strip().lower().removeprefix("torch.")]
    except KeyError:
        raise UnknownDtypeError(name, tuple(dtype.name for dtype in (*ALL, INT4))) from None
