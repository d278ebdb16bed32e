"""Products by the name that a person types: what the table of priors calls them, and which names are close."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

_CLOSEST = 3  # names offered where none matched
_MOST_OF_A_WORD = 6  # names offered that hold what was typed: "Xeon", "Core i7"
_CLOSE = 0.8  # of difflib's ratio: one wrong digit in a short name, and no other product line
# As a person leaves them out, and as torch names places on a machine.
_MAKERS = re.compile(r"\b(nvidia|amd|intel|apple|aws|qualcomm|google|microsoft)\b")
_BRANDS = re.compile(r"\b(geforce|radeon|instinct|tesla|quadro|generation)\b")
_PLACES = re.compile(r"(cpu|cuda|mps|xpu|npu|hpu|mlu|musa|mtia|meta)(:\d+)?")
_SIZE = re.compile(r"(\d+(?:[.,]\d+)?) ?([kmgtp])(i?)b\b")


def is_a_place(name: str) -> bool:
    """Whether a name is torch's for a device of a machine, as "cuda:0", and not that of a product."""
    return _PLACES.fullmatch(name.strip().lower()) is not None


def product_named(name: str, rows: Sequence[Row]) -> Row | None:
    """Return the row of a product, or one made for an architecture ("gfx1030", "sm_75"); None where nothing matches."""
    gfx = re.search(r"\bgfx[0-9a-f]{3,4}\b", name.lower())
    if gfx:
        return {"name": name, "vendor": "amd", "capability": gfx[0], "gb": 0}
    cc = re.search(r"\bsm_?(\d{1,2})(\d)\b", name.lower())
    if cc:
        return {"name": name, "vendor": "nvidia", "capability": f"{cc[1]}.{cc[2]}", "gb": 0}
    plain = _plain(name)
    return next((row for row in rows if re.search(row["re"], plain) or re.search(row["re"], name.lower())), None)


def close_names(name: str, rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the known names that `name` may be meant for, the closest first; none where none is really close.

    A word that names no single product, as "Intel" or "Core i7", is close to the names that hold it.
    """
    asked = _SIZE.sub("", name.lower())
    forms = [(form(asked), form) for form in (_without_maker, _bare)]
    ratios = [(max(_likeness(text, form(row["name"])) for text, form in forms), row["name"]) for row in rows]
    close = sorted((pair for pair in ratios if pair[0] >= _CLOSE), key=lambda pair: -pair[0])
    return tuple(product for _, product in close[:_CLOSEST]) or _with_words_of(asked, rows)


def _with_words_of(asked: str, rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the names that hold every word asked for; else all of its words that are no number or maker."""
    words = re.findall(r"\w+", _plain(asked))
    for wanted in (words, [word for word in words if word.isalpha() and not _MAKERS.fullmatch(word)]):
        holding = [
            row["name"] for row in rows if wanted and set(wanted) <= set(re.findall(r"\w+", _plain(row["name"])))
        ]
        if holding:
            return tuple(holding[:_MOST_OF_A_WORD])
    return ()


def _likeness(name: str, other: str) -> float:
    return difflib.SequenceMatcher(None, name, other, autojunk=False).ratio() if name else 0.0


def bytes_in(name: str) -> int | None:
    """Return the size that a name ends with or holds, in bytes: "M2 24 GB", "A100-80GB", "EPYC 1.5 TB"; None: it holds none."""
    match = _SIZE.search(name.lower())
    if match is None:
        return None
    unit = (1024 if match[3] else 1000) ** ("kmgtp".index(match[2]) + 1)
    return int(float(match[1].replace(",", ".")) * unit)


def _plain(name: str) -> str:
    # Marks and separators carry no meaning: "Intel(R) Arc(TM) A770", "RTX-3090", "V100-SXM2".
    return re.sub(r"\((r|tm)\)", "", name.lower()).replace("-", " ")


def _without_maker(name: str) -> str:
    """Return a name without its maker and what stands in brackets."""
    return " ".join(_MAKERS.sub("", re.sub(r"\(.*?\)", "", _plain(name))).split())


def _bare(name: str) -> str:
    """Return a name without brands either: what tells one product from another."""
    return " ".join(_BRANDS.sub("", _without_maker(name)).split())
