"""Functions of floats that are not above 0, and what is made of them, in LLVM's language."""

from __future__ import annotations

from llvmlite import ir

from .vectors import WORD, multiply_add

# exp(x) is 2**n * exp(r) with r in [-ln2 / 2, ln2 / 2]; ln2 in two parts, of which n times the first is exact.
_PER_TWO, _LN2, _LN2_REST = 1.44269504, 0.693359375, -2.12194440e-4
_ROUNDS = 1.5 * 2**23  # a float that it is added to has no digits behind the point
_LEAST = -87.0  # below it exp is no normal float any more
_SERIES = (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0)


def exp(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Return e to the power of floats that are not above 0, within 2e-7 of it; NaN of NaN."""

    def number(value: float) -> ir.Constant:
        return ir.Constant(x.type, [value] * x.type.count if isinstance(x.type, ir.VectorType) else value)

    whole = ir.VectorType(WORD, x.type.count) if isinstance(x.type, ir.VectorType) else WORD

    def integer(value: int) -> ir.Constant:
        return ir.Constant(whole, [value] * whole.count if isinstance(whole, ir.VectorType) else value)

    is_nothing = builder.fcmp_ordered("<", x, number(_LEAST))
    near = builder.select(is_nothing, number(_LEAST), x)
    shifted = multiply_add(builder, near, number(_PER_TWO), number(_ROUNDS))
    twos = builder.fsub(shifted, number(_ROUNDS))
    rest = multiply_add(builder, twos, number(-_LN2), near)
    rest = multiply_add(builder, twos, number(-_LN2_REST), rest)
    power = number(_SERIES[0])
    for factor in _SERIES[1:]:
        power = multiply_add(builder, power, rest, number(factor))
    exponent = builder.shl(
        builder.bitcast(shifted, whole), integer(23)
    )  # the bits above are those of _ROUNDS: shifted out
    result = builder.bitcast(builder.add(builder.bitcast(power, whole), exponent), x.type)
    result = builder.select(is_nothing, number(0.0), result)
    return builder.select(builder.fcmp_unordered("uno", x, x), x, result)


def silu(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Return x / (1 + exp(-x)) of floats, within 4e-7 of it."""
    lanes = x.type.count if isinstance(x.type, ir.VectorType) else 1
    unit = ir.Constant(x.type, [1.0] * lanes if lanes > 1 else 1.0)
    zero = ir.Constant(x.type, [0.0] * lanes if lanes > 1 else 0.0)
    is_negative = builder.fcmp_ordered("<", x, zero)
    power = exp(builder, builder.select(is_negative, x, builder.fneg(x)))
    numerator = builder.fmul(x, builder.select(is_negative, power, unit))
    return builder.fdiv(numerator, builder.fadd(unit, power))
