"""README.md of a variant: rendered from its evidence and nothing else, and put into the README that is there."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from ...facts import factor_of
from ...rendering.json_numbers import number_from_json
from ...rendering.markdown import code, inline, one_line
from .evidence import Evidence, not_publishable, read_evidence, write_evidence
from .front_matter import body_of, dumped, merged, parted, read_front_matter
from .plots import DRIFT, RANGES
from .staged_files import CARD

BEGIN, END = "<!-- safe_dtype:begin -->", "<!-- safe_dtype:end -->"
_TEMPLATE = "variant.md.j2"
_ADDRESS = re.compile(r"https?://[A-Za-z0-9./_~%?&=#:+-]+")  # no sign that Markdown or HTML gives a meaning
_TAGS = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}


def card_text(evidence: Evidence, existing: str | None = None) -> str:
    """Return the card of a variant; with the README that is there already, our block and our keys put into that.

    Only what stands between our markers is replaced, or the block is put at the end; of the YAML only the keys that are
    ours, and of `tags` nothing that others wrote is taken away. Everything else stays as it is, comments included.

    Raises:
        NotPublishableError: If the YAML that is there cannot be read, or one of our markers is missing.
    """
    block = f"{BEGIN}\n{_rendered(evidence)}{END}\n"
    if existing is None:
        return f"---\n{dumped(_keys(evidence))}---\n\n{block}"
    top, body = parted(existing)
    ours = f"---\n{merged(top, _keys(evidence))}---\n"
    if "\r\n" in existing.partition("\n")[0] + "\n":  # a file of Windows: our lines end as its own do
        ours, block = ours.replace("\n", "\r\n"), block.replace("\n", "\r\n")
    return ours + _with_block(body, block)


def write_card(folder: Path, *, repo: str | None = None, existing: str | None = None) -> str:
    """Render `folder`/README.md from `folder`/safe_dtype.json, and return it.

    Args:
        folder: A staged folder.
        repo: Where it is going: what the card tells people to load. It is noted in safe_dtype.json.
        existing: The README that is there already.

    Raises:
        NotPublishableError: If there is no evidence, or `existing` cannot be read.
    """
    evidence = read_evidence(folder)
    if repo is not None and repo != evidence.repo:
        evidence = replace(evidence, repo=repo)
        write_evidence(evidence, folder)
    text = card_text(evidence, existing)
    (folder / CARD).write_text(text, encoding="utf-8", newline="\n")
    return text


def block_of(card: str) -> str | None:
    """Return our block of a card, with its markers; None where there is none, or not one whole. Line ends are those of Linux."""
    card = body_of(card).replace("\r\n", "\n")
    if card.count(BEGIN) != 1 or card.count(END) != 1 or card.index(BEGIN) > card.index(END):
        return None
    return card[card.index(BEGIN) : card.index(END) + len(END)] + "\n"


def card_problems(card: str, evidence: Evidence) -> list[str]:
    """Return in what a card is not the one that this evidence gives, a sentence each."""
    problems = []
    try:
        rendered = card_text(evidence)
    except jinja2.UndefinedError as exc:
        return [f"no card can be made of safe_dtype.json: {exc.message}"]
    if block_of(card) != block_of(rendered):
        problems.append(
            "README.md does not say what safe_dtype.json says: render it again (`safe-dtype publish card`)"
        )
    front_matter = read_front_matter(card)
    if not front_matter:
        problems.append("README.md has no YAML at its top that can be read")
    for name, value in _keys(evidence).items() if front_matter else ():
        if isinstance(value, list):
            if lost := [item for item in value if item not in (front_matter.get(name) or ())]:
                problems.append(f"the YAML of README.md lacks {', '.join(lost)} in {name}")
        elif front_matter.get(name) != value:
            problems.append(f"the YAML of README.md has {name}: {front_matter.get(name)!r}, and should have {value!r}")
    return problems


def _keys(evidence: Evidence) -> dict[str, Any]:
    base = evidence.base
    tags = ["safe-dtype", _TAGS.get(evidence.dtype, evidence.dtype)]
    tags += ["fp32-islands"] if evidence.islands else []
    tags += ["needs-safe-dtype"] if evidence.needs else []
    keys = {
        "base_model": base.repo, "base_model_relation": "quantized", "library_name": "transformers",
        "license": base.license, "license_name": base.license_name, "license_link": base.license_link,
        "pipeline_tag": base.pipeline_tag, "tags": tags,
    }  # fmt: skip
    return {name: value for name, value in keys.items() if value is not None}


def _rendered(evidence: Evidence) -> str:
    templates = files("safe_dtype.model_cards")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (templates / name).read_text(encoding="utf-8")),
        undefined=jinja2.StrictUndefined,
        finalize=_escaped,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= _FILTERS
    plots = {"drift": DRIFT if DRIFT in evidence.files else "", "ranges": RANGES if RANGES in evidence.files else ""}
    values = evidence.to_dict()
    reach = max(evidence.ranges, key=lambda layer: layer.variant, default=None)
    text = environment.get_template(_TEMPLATE).render(values, bytes=evidence.bytes, plots=plots, reach=reach)
    return re.sub(r"\n{3,}", "\n\n", text)


class _Markdown(str):
    """Text that is fit to stand in a card as it is."""

    __slots__ = ()


def _escaped(value: Any) -> Any:
    """Return a value of a template as Markdown: names are somebody else's, and must not become markup or HTML."""
    if isinstance(value, _Markdown) or not isinstance(value, str):
        return value
    return inline(_without_markers(value)).replace("|", "\\|")


def _without_markers(text: str) -> str:
    """Return text in which nothing is taken for the begin or the end of our block."""
    return text.replace("<!--", "<! --")


def _figure(value: Any) -> str:
    if value is None:
        return "-"
    number = float(number_from_json(value))
    return f"{number:.3g}" if math.isfinite(number) else "not finite"


def _ratio(value: Any) -> str:
    return f"{value:.5f}" if isinstance(value, float) else _figure(value)


def _share(value: float) -> str:
    return f"{value:.2%}"


def _size(count: float) -> str:
    """Return a number of bytes as people read it, in the units of the Hub (thousands)."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _factor(bits: Any) -> _Markdown:
    """Return what a gauge is multiplied by that is moved by so many bits."""
    return _Markdown(factor_of(int(number_from_json(bits))))


def _code(value: Any) -> _Markdown:
    """Return a value as code in Markdown, on one line and inside of a table."""
    text = code(_without_markers(str(value))).replace("|", "\\|")
    return _Markdown(text if str(value).strip() else "")


def _fenced(value: Any) -> _Markdown:
    """Return a value as one line of a block of code, which it cannot end."""
    return _Markdown(one_line(_without_markers(str(value))).replace("```", "'''"))


def _literal(value: Any) -> _Markdown:
    """Return a text as it is written in Python."""
    return _fenced(json.dumps(str(value)))


def _loader(architecture: str) -> _Markdown:
    """Return the class that a snippet loads a model with."""
    named = architecture.isidentifier() and "CausalLM" not in architecture
    return _Markdown(architecture if named else "AutoModelForCausalLM" if "CausalLM" in architecture else "AutoModel")


def _link(value: str) -> _Markdown:
    """Return the address of a license so that it can be followed; anything else than an address as text."""
    return _Markdown(value if _ADDRESS.fullmatch(value) else _escaped(value).replace(":", "\\:"))


_FILTERS = {
    "figure": _figure, "ratio": _ratio, "share": _share, "size": _size, "code": _code, "fenced": _fenced,
    "literal": _literal, "loader": _loader, "link": _link, "factor": _factor,
}  # fmt: skip


def _with_block(body: str, block: str) -> str:
    if BEGIN not in body and END not in body:
        line = "\r\n" if "\r\n" in block else "\n"
        return f"{body.rstrip()}{line}{line}{block}" if body.strip() else f"{line}{block}"
    if block_of(body) is None:
        raise not_publishable(
            Path(CARD), f"the README that is there has not one {BEGIN} before one {END}", "repair it on the Hub first"
        )
    after = body[body.index(END) + len(END) :]
    return body[: body.index(BEGIN)] + block + after.removeprefix("\r").removeprefix("\n")
