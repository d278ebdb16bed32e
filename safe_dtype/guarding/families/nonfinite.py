"""Numbers that are none: NaN or Inf where they are used, or an overflow."""

from __future__ import annotations

from ..failure import FailureKind
from .family import Family, any_of

FAMILY = Family(
    FailureKind.NONFINITE,
    any_of(
        r"probability tensor contains|sampleMultinomialOnce|invalid multinomial distribution \(sum|returned (?:nan|inf)\w* values|without overflow",
        r"\bNaNs?\b.{0,40}(?:produced|detected|found|encountered|in )",
        r"(?:produced|detected|found|encountered|contains?|got|is|are|becomes?|became|all) (?:a |an |all |any |either )?['\"`]?"
        r"(?:NaNs?|inf|infinity|non-?finite)\b",
        r"\b(?:non-?finite|infinite or nan|nan or inf|inf or nan|nan/inf|inf/nan)\b",
        r"minimum loss scale|loss scal\w+ .{0,60}(?:minimum|too small|zero)|floating[- ]point overflow",
    ),
)
