"""The user's own data as batches: texts through the model's tokenizer, images through its image processor, tensors."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ...errors import NotOptimizableError
from ...facts import FEW_POSITIONS
from ..nouns.job import Dynamic
from . import images as pictures
from .signature import positions_of
from .synthetic import Made, complete, read_inputs

logger = logging.getLogger(__name__)

_TEXTS, _TENSORS = (".txt", ".jsonl"), (".safetensors",)
_KINDS: Mapping[str, str] = {
    **dict.fromkeys(_TEXTS, "texts"), **dict.fromkeys(pictures.SUFFIXES, "images"), **dict.fromkeys(_TENSORS, "tensors"),
}  # fmt: skip
_OTHER = "pass .txt or .jsonl files of texts, .png or .jpg images, or .safetensors files of whole batches"


def user_batches(  # noqa: PLR0913  # two are the data's, two their amount, two the model's shapes
    path: Path,
    model_folder: Path,
    *,
    batch_size: int,
    limit: int,
    max_length: int = 512,
    traced: Mapping[str, Tensor] | None = None,
    dynamic: Dynamic = Dynamic(),  # noqa: B008  # frozen
) -> list[Made]:
    """Return the user's data as batches of `batch_size` rows; the last is filled up with the first rows.

    A .txt holds texts with empty lines between them, or where it has none, one text a line; a .jsonl holds one object
    a line, its text under "text". A .safetensors file is one batch, and is taken as it is.

    Args:
        path: A file, or a folder with files of one of these kinds, also in folders below.
        model_folder: Where the tokenizer or the image processor is.
        batch_size: Rows a batch.
        limit: Batches at most.
        max_length: Tokens of a text at most; a longer text is cut, as is one with more tokens than the model has positions.
        traced: The batch that a form is made with. Texts and images then get its sizes, except where `dynamic` lets them
            vary, and its other inputs (`decoder_input_ids`) are added.
        dynamic: The ranges.

    Raises:
        NotOptimizableError: If there is nothing to read, a file is not what its name says, or the data are not what the
            model takes.
        EnvironmentNotFitError: If Pillow is missing, and there are images.
    """
    kind, files = _files(path)
    if kind == "tensors":
        return [Made("user", file.name, _as_traced(read_inputs(file), traced, file.name)) for file in files[:limit]]
    ranges = complete(dynamic, traced or {})
    if kind == "texts":
        return _of_texts(files, model_folder, batch_size, limit, _lengths(max_length, traced, ranges), traced)
    return _of_images(files, model_folder, batch_size, limit, traced, ranges)


def _files(path: Path) -> tuple[str, list[Path]]:
    """Return the kind of the data, and the files in the order of their names."""
    if not path.exists():
        raise NotOptimizableError(f"there is no {path}", _OTHER)
    paths = sorted(path.rglob("*")) if path.is_dir() else [path]
    files = [one for one in paths if one.is_file() and one.suffix.lower() in _KINDS]
    kinds = sorted({_KINDS[one.suffix.lower()] for one in files})
    if not kinds:
        raise NotOptimizableError(f"{path} holds no data of a known kind", _OTHER)
    if len(kinds) > 1:
        raise NotOptimizableError(f"{path} holds {' and '.join(kinds)}", "pass a folder with one kind of data in it")
    return kinds[0], files


def _groups(rows: Sequence[Any], size: int, limit: int) -> Iterator[tuple[list[Any], str]]:
    """Yield `size` rows at a time, and their numbers as text; the last group is filled up with the first rows."""
    for start in range(0, min(len(rows), limit * size), size):
        group = list(rows[start : start + size])
        about = f"{start + 1} to {start + len(group)} of {len(rows)}"
        if missing := size - len(group):
            group += [rows[number % len(rows)] for number in range(missing)]
            about += f", and {missing} again"
        yield group, about


# --- texts ---------------------------------------------------------------------------------------------------------


def _texts(file: Path) -> list[str]:
    try:
        whole = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise NotOptimizableError(f"{file} cannot be read as UTF-8 ({exc})", _OTHER) from exc
    if file.suffix.lower() == ".jsonl":
        return [_text_of(line, f"{file}, line {n}") for n, line in enumerate(whole.splitlines(), 1) if line.strip()]
    paragraphs = whole.strip().split("\n\n")
    pieces = paragraphs if len(paragraphs) > 1 else whole.splitlines()
    return [one.strip() for one in pieces if one.strip()]


def _text_of(line: str, where: str) -> str:
    try:
        content = json.loads(line)
    except ValueError as exc:
        raise NotOptimizableError(f"{where} is no JSON ({exc})", 'write one object a line: {"text": "..."}') from exc
    text = content.get("text") if isinstance(content, Mapping) else None
    if not isinstance(text, str):
        raise NotOptimizableError(f'{where} has no text under "text"', 'write one object a line: {"text": "..."}')
    return text


def _lengths(longest: int, traced: Mapping[str, Tensor] | None, dynamic: Dynamic) -> tuple[int, int]:
    """Return how many tokens a batch has at least, and at most."""
    if traced is None or "input_ids" not in traced:
        return 1, longest
    size = traced["input_ids"].shape[-1]
    low, high = dynamic.of("input_ids").get(1, (size, size))
    return low, max(low, min(high, longest))


def _of_texts(  # the arguments of `user_batches`
    files: Sequence[Path],
    folder: Path,
    batch_size: int,
    limit: int,
    lengths: tuple[int, int],
    traced: Mapping[str, Tensor] | None,
) -> list[Made]:
    texts = [text for file in files for text in _texts(file) if text]
    if not texts:
        raise NotOptimizableError(f"there is no text in {', '.join(str(one) for one in files)}", _OTHER)
    tokenizer, positions = _tokenizer(folder)
    shortest, longest = lengths[0], max(lengths[0], min(lengths[1], positions))
    batches = []
    own = sum(
        len(tokenizer(text, truncation=True, max_length=longest, verbose=False).input_ids)
        for text in texts[:FEW_POSITIONS]
    )
    if own < FEW_POSITIONS:
        logger.warning(
            "the texts have %d tokens altogether, on which little can be verified. Next: pass more of them, or longer ones",
            own,
        )
    for group, about in _groups(texts, batch_size, limit):
        rows = [dict(tokenizer(text, truncation=True, max_length=longest, verbose=False)) for text in group]
        tensors = _padded(rows, shortest, tokenizer)
        batches.append(Made("user", f"texts {about}", _as_traced(tensors, traced, "the texts")))
    return batches


def _tokenizer(folder: Path) -> tuple[Any, int]:
    """Return the tokenizer, and how many tokens the model takes at most."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        config = AutoConfig.from_pretrained(folder)
    except (ImportError, OSError, ValueError) as exc:
        raise NotOptimizableError(
            f"{folder} has no tokenizer that transformers can load ({' '.join(str(exc).split())[:200]})",
            "give the tokens as tensors, in safetensors files",
        ) from exc
    positions = positions_of(config.get_text_config()) or tokenizer.model_max_length
    return tokenizer, min(tokenizer.model_max_length, positions)


def _padded(rows: Sequence[Mapping[str, list[int]]], shortest: int, tokenizer: Any) -> dict[str, Tensor]:
    """Return the rows as tensors (batch, tokens), int64, padded on the right.

    The tokenizer does not pad them: many tokenizers of decoders have no padding token, or pad on the left, and a row
    then begins with positions that may attend to nothing.
    """
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    width = max(shortest, *(len(row["input_ids"]) for row in rows))
    tensors = {}
    for name in rows[0]:
        fill = padding if name == "input_ids" else 0
        tensors[name] = torch.tensor([[*row[name], *[fill] * (width - len(row[name]))] for row in rows])
    return tensors


# --- images --------------------------------------------------------------------------------------------------------


def _of_images(  # the arguments of `user_batches`
    files: Sequence[Path],
    folder: Path,
    batch_size: int,
    limit: int,
    traced: Mapping[str, Tensor] | None,
    dynamic: Dynamic,
) -> list[Made]:
    reader = pictures.Pictures(folder)
    batches = []
    for group, about in _groups(files, batch_size, limit):
        tensors = reader.tensors(group)
        size = _wanted_size(tensors["pixel_values"], traced, dynamic)
        more = ""
        if size != tuple(tensors["pixel_values"].shape[-2:]):
            tensors = {name: _scaled(name, one, size) for name, one in tensors.items()}
            more = f", scaled to {size[0]} x {size[1]}"
        about = f"images {about}, {reader.about}{more}"
        batches.append(Made("user", about, _as_traced(tensors, traced, "the images")))
    return batches


def _wanted_size(pixels: Tensor, traced: Mapping[str, Tensor] | None, dynamic: Dynamic) -> tuple[int, int]:
    """Return height and width: those of the images, where the ranges allow them, else those of the traced batch."""
    here = (pixels.shape[-2], pixels.shape[-1])
    if traced is None or "pixel_values" not in traced:
        return here
    like, ranges = traced["pixel_values"], dynamic.of("pixel_values")
    ends = [ranges.get(like.dim() - back, (like.shape[-back],) * 2) for back in (2, 1)]
    if all(low <= size <= high for size, (low, high) in zip(here, ends, strict=True)):
        return here
    return like.shape[-2], like.shape[-1]


def _scaled(name: str, tensor: Tensor, size: tuple[int, int]) -> Tensor:
    if name == "pixel_mask":
        return interpolate(tensor[:, None].float(), size, mode="nearest")[:, 0].to(tensor.dtype)
    return interpolate(tensor, size, mode="bilinear", antialias=True) if tensor.dim() == 4 else tensor


# --- as the model takes them ---------------------------------------------------------------------------------------


def _as_traced(tensors: dict[str, Tensor], traced: Mapping[str, Tensor] | None, what: str) -> dict[str, Tensor]:
    """Return exactly the inputs of the traced batch: a form takes no others.

    Inputs that the data lack are taken from the traced batch; flags and masks of a text get the text's length.
    """
    if traced is None:
        return tensors
    if not tensors.keys() & traced.keys():
        raise NotOptimizableError(
            f"{what} give {', '.join(tensors)}, and the model takes {', '.join(traced)}",
            "pass data of the kind that the model takes",
        )
    rows = next(iter(tensors.values())).shape[0]
    return {
        name: tensors[name] if name in tensors else _from_traced(name, tensor, rows, tensors, what)
        for name, tensor in traced.items()
    }


def _from_traced(name: str, tensor: Tensor, rows: int, tensors: Mapping[str, Tensor], what: str) -> Tensor:
    ids = tensors.get("input_ids")
    beside_ids = tensor.dim() == 2 and not tensor.is_floating_point() and not name.startswith("decoder_")
    if ids is not None and beside_ids and name.endswith(("mask", "token_type_ids")):
        # All as the first element of the traced batch: one in an attention mask, zero in flags and types.
        return torch.full_like(ids, int(tensor[0, 0]), dtype=tensor.dtype)
    if tensor.dim() and tensor.shape[0] < rows:
        raise NotOptimizableError(
            f"{what} have {rows} rows and no {name}, of which the traced batch has {tensor.shape[0]}",
            "pass data with it, as a safetensors file",
        )
    return tensor[:rows] if tensor.dim() else tensor
