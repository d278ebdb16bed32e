"""The tokenizer of a checkpoint as GGUF has it. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safe_dtype.errors import NotExportableError

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # llama.cpp's kinds of tokens

# How a text is cut before its pieces are merged, by the regex of tokenizer.json; llama.cpp knows each by a name.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|")
_CUTS: Mapping[str, str] = {_GPT2: "gpt-2", _QWEN2: "qwen2", _LLAMA3: "llama-bpe"}
_ADVICE = "llama.cpp's convert_hf_to_gguf.py knows more tokenizers"


@dataclass(frozen=True, slots=True)
class GgufTokens:
    """A vocabulary of byte-level BPE, in the words of GGUF."""

    cut: str  # tokenizer.ggml.pre
    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    merges: tuple[str, ...]
    special: tuple[tuple[str, int], ...]  # "eos" and its id
    adds_bos: bool
    chat_template: str = ""


def gguf_tokens(folder: Path, size: int) -> GgufTokens:
    """Return the tokenizer that lies in `folder`, its vocabulary filled up to `size`, the rows of the embedding.

    Raises:
        NotExportableError: If there is none, or llama.cpp would cut or merge a text in another way.
    """
    try:
        table = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        model, added = table["model"], table.get("added_tokens") or []
        vocabulary: dict[str, int] = dict(model["vocab"]) if model["type"] == "BPE" else {}
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise NotExportableError(f"its tokenizer.json cannot be read ({exc!r})", _ADVICE) from exc
    if not vocabulary or model.get("byte_fallback"):
        raise NotExportableError(f"its tokenizer is {_kind(model)}, and byte-level BPE is written here", _ADVICE)
    if table.get("normalizer") not in (None, {"type": "NFC"}):
        raise NotExportableError(f"its tokenizer changes a text first ({table['normalizer']['type']})", _ADVICE)
    texts = {number: text for text, number in vocabulary.items()}
    kinds = dict.fromkeys(texts, _NORMAL)
    for token in added:
        texts[token["id"]] = token["content"]
        kinds[token["id"]] = _CONTROL if token.get("special") else _USER_DEFINED
    if texts and max(texts) >= size:
        raise NotExportableError(f"its tokenizer has token {max(texts)}, and its embedding {size} rows", _ADVICE)
    config = _json(folder / "tokenizer_config.json")
    numbers = {text: number for number, text in texts.items()}
    return GgufTokens(
        _cut(table.get("pre_tokenizer")),
        tuple(texts.get(number, f"[PAD{number}]") for number in range(size)),
        tuple(kinds.get(number, _UNUSED) for number in range(size)),
        tuple(pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]),
        _special(folder, config, numbers),
        _adds_bos(table),
        _template(folder, config),
    )


def _kind(model: Mapping[str, Any]) -> str:
    return (
        f"{model.get('type')} with bytes beside its tokens" if model.get("byte_fallback") else str(model.get("type"))
    )


def _cut(before: Any) -> str:
    """Return llama.cpp's name for the way in which a text is cut."""
    steps = before.get("pretokenizers", [before]) if isinstance(before, dict) else []
    regexes = [step["pattern"].get("Regex", "") for step in steps if step.get("type") == "Split"]
    regexes += [_GPT2 for step in steps if step.get("type") == "ByteLevel" and step.get("use_regex", True)]
    is_bytes = any(step.get("type") == "ByteLevel" for step in steps)
    if (
        not is_bytes
        or len(regexes) != 1
        or regexes[0] not in _CUTS
        or any(step.get("add_prefix_space") for step in steps)
    ):
        raise NotExportableError("its tokenizer cuts a text in a way that has no name here", _ADVICE)
    return _CUTS[regexes[0]]


def _special(folder: Path, config: Mapping[str, Any], numbers: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """Return the ids of the tokens with a meaning; of the end what `generate` takes for one, first."""
    special = {}
    for name in ("bos", "eos", "unk", "pad"):
        token = config.get(f"{name}_token")
        text = token.get("content") if isinstance(token, Mapping) else token
        if isinstance(text, str) and text in numbers:
            special[name] = numbers[text]
    ends = _json(folder / "generation_config.json").get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    if "eos" not in special and isinstance(ends[0], int):
        special["eos"] = ends[0]
    return tuple(special.items())


def _adds_bos(table: Mapping[str, Any]) -> bool:
    after = table.get("post_processor") or {}
    steps = after.get("processors", [after])
    singles = [step.get("single") or [] for step in steps if step.get("type") == "TemplateProcessing"]
    return any("SpecialToken" in piece for single in singles for piece in single[:1])


def _template(folder: Path, config: Mapping[str, Any]) -> str:
    with suppress(OSError):
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    template = config.get("chat_template")
    return template if isinstance(template, str) else ""


def _json(file: Path) -> dict[str, Any]:
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}
