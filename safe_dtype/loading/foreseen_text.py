"""What reading and writing text with a checkpoint will fail at: its tokenizer's files and its chat templates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers
from transformers.utils import chat_template_utils

from ..errors import CorruptCheckpointError
from ..facts import ForeseenFailure
from ..facts.foreseen_failure import READING
from ..store import parse_json
from ..store.git_lfs import is_pointer, require_pulled

# One of these is beside every model that has a tokenizer. (Those of bytes and characters have a config alone.)
_OF_A_TOKENIZER = (
    "tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "spiece.model",
    "sentencepiece.bpe.model", "source.spm", "tekken.json", "vocab.model", "tiktoken.model",
)  # fmt: skip
_TABLES = ("tokenizer_config.json", "tokenizer.json", "vocab.json", "chat_template.json")
_ITS_BASE = "copy that of its base model into the folder"
_TALKING = "talking with it will fail"


def foreseen_of_text(folder: Path) -> Iterator[ForeseenFailure]:
    """Yield what will fail where a model in `folder` reads text or talks. Runs no model, and no code of the checkpoint."""
    if not any((folder / name).exists() for name in _OF_A_TOKENIZER) and not any(folder.glob("*.tiktoken")):
        yield ForeseenFailure("it has no tokenizer", _ITS_BASE, READING)
        return
    if has_pointers(folder):
        try:
            require_pulled(folder)
        except CorruptCheckpointError as exc:
            yield ForeseenFailure(f"{Path(exc.source).name} {exc.problem}", exc.advice, READING)
        return
    damaged = [failure for name in _TABLES if (failure := _damaged(folder / name))]
    yield from damaged
    if not damaged:
        yield from _missing(folder)
        yield from _templates(folder)


def has_pointers(folder: Path) -> bool:
    """Whether a file of the tokenizer is a pointer of Git LFS, whose content was never downloaded."""
    return any(is_pointer(folder / name) for name in _OF_A_TOKENIZER)


def _damaged(file: Path) -> ForeseenFailure | None:
    try:
        if file.is_file() and not isinstance(parse_json(file.read_text(encoding="utf-8")), dict):
            return ForeseenFailure(f"{file.name} is no table", "download it again", READING)
    except ValueError as exc:
        return ForeseenFailure(f"{file.name} is no JSON ({exc})", "download it again", READING)
    return None


def _table(file: Path) -> dict[str, Any]:
    return dict(parse_json(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def _missing(folder: Path) -> Iterator[ForeseenFailure]:
    """Yield that none of the files is there which the tokenizer's own class reads its vocabulary from."""
    name = _table(folder / "tokenizer_config.json").get("tokenizer_class")
    tokenizer_class = getattr(transformers, name, None) if isinstance(name, str) else None
    wanted = tuple(getattr(tokenizer_class, "vocab_files_names", {}).values())
    if wanted and not any((folder / file).is_file() for file in (*wanted, *_OF_A_TOKENIZER[1:])):
        problem = f"it has a tokenizer_config.json, and no vocabulary: {name} reads {' or '.join(wanted)}"
        yield ForeseenFailure(problem, _ITS_BASE, READING)


def _templates(folder: Path) -> Iterator[ForeseenFailure]:
    """Yield the chat templates that jinja cannot read."""
    for place, template in _all_templates(folder):
        if why := _mistake_in(template):
            problem = f"its chat template ({place}) is broken{why}"
            yield ForeseenFailure(problem, "take the template that its author published", _TALKING)


def _mistake_in(template: str) -> str:
    """Return where jinja stops reading a template and why; nothing where it does not, or is not installed."""
    try:
        chat_template_utils._compile_jinja_template(template)
    except ImportError:
        return ""
    except Exception as exc:  # noqa: BLE001  (a class of jinja2, which need not be installed)
        line = f" in line {exc.lineno}" if hasattr(exc, "lineno") else ""
        return f"{line}: {' '.join(str(exc).split())}"
    return ""


def _all_templates(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield every chat template with the file that it is in, as transformers looks for them."""
    for file in (folder / "chat_template.jinja", *sorted((folder / "additional_chat_templates").glob("*.jinja"))):
        if file.is_file():
            yield file.name, file.read_text(encoding="utf-8", errors="replace")
    for file in (folder / "chat_template.json", folder / "tokenizer_config.json"):
        template = _table(file).get("chat_template")
        several = template if isinstance(template, list) else [{"template": template}]
        texts = (one.get("template") for one in several if isinstance(one, dict))
        yield from ((file.name, text) for text in texts if isinstance(text, str))
