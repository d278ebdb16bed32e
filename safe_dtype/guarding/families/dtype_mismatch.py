"""Two floating dtypes that met in one operation."""

from __future__ import annotations

from ...facts import Dtype
from ..failure import FailureKind
from .dtype_names import names_integers
from .family import Family, any_of


def _is_about_floats(text: str, dtypes: tuple[Dtype, ...]) -> bool:
    return bool(dtypes) and not names_integers(text)


FAMILY = Family(
    FailureKind.DTYPE_MISMATCH,
    any_of(
        r"(?:should|must|expected to|have to|need to|to) (?:all )?(?:be|have) (?:the )?(?:same|match|equal|consistent)",
        r"expected (?:scalar type|dtype|m1 and m2|mat1 and mat2|.{0,30} to have dtype)|Found dtype .{0,40} but expected",
        r"same (?:d|data |scalar )type|dtypes? (?:must )?match|d?type mismatch|dtypes? (?:do|does)(?: not|n't) match",
        r"does not match .{0,30}(?:dtype|type)|to match query dtype|mixed dtype|should be the same|must be the same",
        r"Expected .{0,60}d?type .{0,60}(?:but|got)|(?:object|tensor) of (?:scalar )?type .{1,60} but (?:got|found)",
        r"Expected \S*dtype to be .{1,40}got|can't be cast to the desired output type|Unexpected input data type",
        r"incompatible (?:dtypes|data types|tensor types)|element types .{0,40}(?:differ|match|same)",
        r"must have the (?:d|data |scalar )?type .{1,40}got",
    ),
    is_curable=_is_about_floats,
    names_both_sides=True,
)
