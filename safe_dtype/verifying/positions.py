"""Which positions of an output count, and which token each of them should predict."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from .outputs import Batch, Model

NO_TARGET = -100  # as in transformers' labels
_CHUNK_ELEMENTS = 2**20  # 8 MB a tensor in float64: a few rows of a 152k vocabulary at a time


class Alignment(str, Enum):
    """What the logits at a position are about."""

    NEXT_TOKEN = "next_token"  # the token after it: decoders, and functions, which have no config
    DECODER = "decoder"  # the label at it, or the next of decoder_input_ids: encoder-decoder models
    OWN_LABEL = "own_label"  # the label at it: masked language models, token classification


def alignment_of(*models: Model) -> Alignment:
    """Return the alignment of the first of `models` that has transformers' `config` or `can_generate`."""
    for model in models:
        config, can_generate = getattr(model, "config", None), getattr(model, "can_generate", None)
        if getattr(config, "is_encoder_decoder", False) is True:
            return Alignment.DECODER
        if callable(can_generate):
            return Alignment.NEXT_TOKEN if can_generate() else Alignment.OWN_LABEL
    return Alignment.NEXT_TOKEN


def counted(output: Tensor, batch: Batch, alignment: Alignment) -> Tensor | None:
    """Return which positions of `output` count, as a bool tensor (batch, positions); None where all do.

    Only outputs (batch, positions, anything) have positions that can be hidden: by `attention_mask`; of a decoder with
    an encoder by `decoder_attention_mask`, or where there is none by labels of -100. A mask of another shape than
    (batch, positions) hides nothing.
    """
    decodes = alignment is Alignment.DECODER or "decoder_input_ids" in batch
    mask = _fitting(batch.get("decoder_attention_mask" if decodes else "attention_mask"), output)
    if mask is not None:
        return mask != 0
    labels = _fitting(batch.get("labels"), output) if decodes else None
    return None if labels is None else labels != NO_TARGET


def targets(logits: Tensor, batch: Batch, alignment: Alignment) -> Tensor | None:
    """Return the token that each position should predict, (batch, positions), NO_TARGET where there is none.

    None where the batch names no tokens, or names some that `logits` (batch, positions, vocabulary) do not have.
    """
    labels = _fitting(batch.get("labels"), logits)
    if alignment is Alignment.OWN_LABEL:
        tokens = labels
    elif alignment is Alignment.DECODER or "decoder_input_ids" in batch:
        shown = counted(logits, batch, alignment)
        tokens = labels if labels is not None else _shifted(batch.get("decoder_input_ids"), shown, logits)
    elif labels is not None:
        tokens = _shifted(labels, None, logits)
    else:
        tokens = _shifted(batch.get("input_ids"), counted(logits, batch, alignment), logits)
    if tokens is None or not tokens.numel() or int(tokens.max()) >= logits.shape[2]:
        return None
    return tokens.long()  # ids may come in int32, which torch does not take as an index


def tables(output: Tensor) -> Iterator[Tensor]:
    """Yield `output` as views of shape (rows, width), one row a position.

    (batch, channels, height, width) gives one table an image, its rows the pixels; anything else one table, its rows
    along the last dimension.
    """
    if output.ndim == 4:
        for image in output:
            yield image.flatten(1).T
    else:
        yield output.reshape(-1, output.shape[-1] if output.ndim else 1)


def chunks(rows: Tensor, width: int) -> Iterator[Tensor]:
    """Split the row numbers `rows` so that no table of them holds more than a million elements."""
    size = max(1, _CHUNK_ELEMENTS // max(1, width))
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def rows_that_count(table: Tensor, mask: Tensor | None) -> Tensor:
    """Return the numbers of the rows of `table` that `mask` leaves, all where it is None."""
    return torch.arange(len(table)) if mask is None else mask.flatten().nonzero().flatten()


def as_float64(table: Tensor, rows: Tensor) -> Tensor:
    """Return these rows, rounded to float32 as a recording holds them, in float64 to compute with."""
    return table[rows].float().double()


def _fitting(values: Any, output: Tensor) -> Tensor | None:
    """Return `values` on the CPU where it is a tensor with one value for each position of `output`, else None."""
    fits = isinstance(values, Tensor) and output.ndim == 3 and values.shape == output.shape[:2]
    return values.cpu() if fits else None


def _shifted(ids: Any, mask: Tensor | None, logits: Tensor) -> Tensor | None:
    """Return for each position the id at the next one, NO_TARGET for the last and before a hidden one."""
    fitting = _fitting(ids, logits)
    if fitting is None:
        return None
    shown = fitting if mask is None else fitting.masked_fill(~mask, NO_TARGET)
    return torch.cat([shown[:, 1:], torch.full_like(shown[:, :1], NO_TARGET)], dim=1)
