"""Is this error one that another dtype, another kernel or another form of the model can cure?

A wrong yes is worse than a wrong no: it retries what cannot be cured, so what is refused (memory, shapes, indices,
devices, drivers, files, configuration) is looked for first, then the families in their order. Their texts are in
`families`, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..facts import BFLOAT16, FLOAT8_E4M3, FLOAT16, FLOAT32
from .failure import Failure
from .families import FAMILIES
from .families.dtype_names import allowed_dtypes_in, dtypes_in
from .families.refused import is_refused, is_sticky

_WRAPPERS = frozenset({
    "InductorError", "BackendCompilerFailed", "LoweringException", "TorchRuntimeError", "InternalTorchDynamoError",
})  # fmt: skip
# float32 is the wide side of a mismatch; of two 16-bit ones bfloat16 is the one that fewer devices have.
_SUSPECTS = (FLOAT8_E4M3, BFLOAT16, FLOAT16, FLOAT32)
_CHAIN_LENGTH = 16
_LONGEST_LINE = 300  # characters of a foreign text in our own


def classify(exc: BaseException) -> Failure | None:
    """Return what `exc` is a failure of, or None where another dtype would not cure it.

    Causes are followed, and contexts of wrappers that say nothing themselves: an error raised while another one was
    handled is otherwise its own affair.
    """
    for link in links_of(exc):
        text = text_of(link)
        if is_refused(link, text):
            return None
        failure = _match(link, text)
        if failure is not None:
            return failure
    return None


def links_of(exc: BaseException) -> Iterator[BaseException]:
    """Yield `exc` and what it says that it comes from."""
    seen: set[int] = set()
    link: BaseException | None = exc
    while link is not None and id(link) not in seen and len(seen) < _CHAIN_LENGTH:
        seen.add(id(link))
        yield link
        following = link.__cause__
        if (
            following is None
            and not link.__suppress_context__
            and (not text_of(link) or type(link).__name__ in _WRAPPERS)
        ):
            following = link.__context__
        link = following


def text_of(exc: BaseException) -> str:
    """Return the text of `exc`; nothing where it cannot be printed."""
    try:
        return str(exc)
    except Exception:  # noqa: BLE001  (an exception that cannot be printed says nothing)
        return ""


def first_line(message: str) -> str:
    """Return the first line of a foreign text, cut to a readable length."""
    line = message.strip().partition("\n")[0]
    return line if len(line) <= _LONGEST_LINE else line[: _LONGEST_LINE - 1] + "…"


def _match(exc: BaseException, text: str) -> Failure | None:
    by_name = (family for family in FAMILIES if type(exc).__name__ in family.exception_names)
    by_text = (family for family in FAMILIES if family.texts.search(text))
    family = next(by_name, None) or next(by_text, None)
    dtypes = dtypes_in(text)
    if family is None or not family.is_curable(text, dtypes):
        return None
    allowed = () if family.names_both_sides else allowed_dtypes_in(text)
    suspects = [dtype for dtype in dtypes if dtype not in allowed]
    failed = min(suspects, key=_SUSPECTS.index, default=None)
    return Failure(family.kind, text, failed, dtypes, allowed, sticky=is_sticky(text))
