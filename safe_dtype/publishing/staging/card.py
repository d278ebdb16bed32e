"""README.md of a variant: rendered from its evidence and nothing else, and put into the README that is there."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from ...rendering.json_numbers import number_from_json
from .evidence import Evidence, not_publishable, read_evidence, write_evidence
from .front_matter import dumped, merged, parted, read_front_matter
from .plots import DRIFT, RANGES
from .staged_files import CARD

BEGIN, END = "<!-- safe_dtype:begin -->", "<!-- safe_dtype:end -->"
_TEMPLATE = "variant.md.j2"
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
    return f"---\n{merged(top, _keys(evidence))}---\n{_with_block(body, block)}"


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
    """Return our block of a card, with its markers; None where there is none, or not one whole."""
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
    environment = jinja2.Environment(  # Markdown, not HTML: what goes into it is made fit below
        loader=jinja2.FunctionLoader(lambda name: (templates / name).read_text(encoding="utf-8")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"figure": _figure, "ratio": _ratio, "share": _share, "size": _size, "code": _code}
    plots = {"drift": DRIFT if DRIFT in evidence.files else "", "ranges": RANGES if RANGES in evidence.files else ""}
    values = evidence.to_dict()
    reach = max(evidence.ranges, key=lambda layer: layer.variant, default=None)
    text = environment.get_template(_TEMPLATE).render(values, bytes=evidence.bytes, plots=plots, reach=reach)
    return re.sub(r"\n{3,}", "\n\n", text)


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


def _code(value: Any) -> str:
    """Return a value as code in Markdown, on one line and inside of a table."""
    text = " ".join(str(value).split()).replace("`", "'").replace("|", "\\|")
    return f"`{text}`" if text else ""


def _with_block(body: str, block: str) -> str:
    if BEGIN not in body and END not in body:
        return f"{body.rstrip()}\n\n{block}" if body.strip() else f"\n{block}"
    if block_of(body) is None:
        raise not_publishable(
            Path(CARD), f"the README that is there has not one {BEGIN} before one {END}", "repair it on the Hub first"
        )
    return body[: body.index(BEGIN)] + block + body[body.index(END) + len(END) :].removeprefix("\n")
