"""Terminals and pipes of any encoding: a sign that one does not have is written in ASCII, and never an error."""

from __future__ import annotations

import codecs
import io
import os
import sys
import unicodedata
from typing import TextIO

_SIGNS = {
    "\N{HORIZONTAL ELLIPSIS}": "...", "\N{BOX DRAWINGS LIGHT HORIZONTAL}": "-", "\N{BOX DRAWINGS HEAVY HORIZONTAL}": "-",
    "\N{BOX DRAWINGS LIGHT VERTICAL}": "|", "\N{EN DASH}": "-", "\N{EM DASH}": "-", "\N{MINUS SIGN}": "-",
    "\N{HYPHEN}": "-", "\N{NON-BREAKING HYPHEN}": "-",
    "\N{LEFT SINGLE QUOTATION MARK}": "'", "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "\N{LEFT DOUBLE QUOTATION MARK}": '"', "\N{RIGHT DOUBLE QUOTATION MARK}": '"',
    "\N{MULTIPLICATION SIGN}": "x", "\N{RIGHTWARDS ARROW}": "->", "\N{LEFTWARDS ARROW}": "<-", "\N{BULLET}": "*",
    "\N{MIDDLE DOT}": "*", "\N{GREATER-THAN OR EQUAL TO}": ">=", "\N{LESS-THAN OR EQUAL TO}": "<=",
    "\N{ALMOST EQUAL TO}": "~", "\N{MICRO SIGN}": "u", "\N{EURO SIGN}": "EUR",
}  # fmt: skip
_ERRORS = _CODEC = "safe_dtype_ascii"

_NARROWEST, _IN_A_FILE, _WIDEST = 40, 110, 140  # columns; beyond the last, lines are hard to follow with the eye


def accept_any_text() -> None:
    """Let stdout and stderr take every text, whatever their encoding has no sign for.

    `PYTHONIOENCODING=latin-1:replace` and its like stay as they are: who names a way to handle errors gets it.
    """
    codecs.register(_ascii_codec)
    for stream, default in ((sys.stdout, ("strict", "surrogateescape")), (sys.stderr, ("backslashreplace",))):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in default:
            # click takes a stream in ASCII for one that is set up badly, and writes UTF-8 past it.
            is_ascii = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding=_CODEC if is_ascii else None, errors=_ERRORS)


def writable(text: str, stream: TextIO) -> str:
    """Return `text` with what the encoding of `stream` has no sign for in ASCII."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, _ERRORS).decode(encoding)


def columns(stream: TextIO) -> int:
    """Return how wide a text may be: COLUMNS where it is set, else the terminal's width, or what suits a file."""
    asked = os.environ.get("COLUMNS", "")
    if asked.isdecimal() and int(asked):
        return max(int(asked), _NARROWEST)
    try:
        shown = os.get_terminal_size(stream.fileno()).columns
    except (AttributeError, OSError, ValueError):  # a pipe, a file, or no stream of the system at all
        shown = 0
    return max(min(shown, _WIDEST), _NARROWEST) if shown else _IN_A_FILE


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Return what stands for the signs that could not be encoded, and where to go on: an error handler of `codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_ascii, error.object[error.start : error.end])), error.end


def _ascii(sign: str) -> str:
    letters = unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode("ascii")  # of an accented letter
    return _SIGNS.get(sign) or letters or sign.encode("ascii", "backslashreplace").decode("ascii")


class _Encoder(codecs.IncrementalEncoder):
    def encode(self, text: str, final: bool = False) -> bytes:  # noqa: ARG002, FBT001, FBT002
        return codecs.ascii_encode(text, self.errors)[0]


def _ascii_codec(name: str) -> codecs.CodecInfo | None:
    if name != _CODEC:
        return None
    ascii_codec = codecs.lookup("ascii")
    return codecs.CodecInfo(
        name=_CODEC,
        encode=ascii_codec.encode,
        decode=ascii_codec.decode,
        incrementalencoder=_Encoder,
        incrementaldecoder=ascii_codec.incrementaldecoder,
    )


codecs.register_error(_ERRORS, _in_ascii)
