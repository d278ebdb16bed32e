"""Batches to compare models on: from a text, or at random where there is no tokenizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import NothingToCompareError

# Written for this purpose: prose, numbers and code, since a model's logits are of different sizes on each.
BUILT_IN_TEXT = """\
The lighthouse at the end of the pier had not been lit for eleven years when Marta bought it. She paid less than she
had paid for her first car, and the man from the harbour office shook his head while he counted the notes. "You know
that the stairs are gone above the second floor," he said. She knew. She had been a carpenter before she was anything
else, and stairs were the one thing in the world that had never frightened her.

The first winter was hard. Wind came through the walls as if they were made of cloth, and the water in the kettle had
to be melted before it could be boiled. She worked from the bottom up: 14 steps in October, 22 in November, then none
for six weeks because the oak had not arrived. By the end of March there were 97 of them, each 19 centimetres high,
and she stood at the top with a cup of tea that was still warm and looked at the sea.

What is a good repair? It is tempting to say that it leaves a thing as it was. But a thing that broke once will break
again in the same place, unless somebody asks why. The old stairs had rotted because rain ran down the inside of the
wall; new stairs on the same wall would rot as well. So Marta measured. In a wet week the lower wall took up 3.5 litres
of water, the upper one 12.8, and almost all of that came in through a single crack, no wider than a finger, below the
lamp room. She filled it, waited for the next storm, and measured again: 0.4 litres. Then she ordered the oak.

She kept the figures in a small program, because she did not trust her memory:

def mean(values):
    total = 0.0
    for value in values:
        total += value
    return total / len(values)

litres = {"lower": [3.1, 3.9, 3.5], "upper": [12.2, 13.4, 12.8]}
for wall, taken in litres.items():
    print(wall, round(mean(taken), 2))

In summer the children of the village came to see the lamp. It was electric now, smaller than a loaf of bread, and it
turned once in 7.5 seconds. A boy asked whether ships still needed it, since they all had satellites. "Most of them do
not," Marta said. "But a satellite cannot tell you that somebody is at home."
"""

Batches = list[dict[str, Tensor]]


def text_batches(tokenizer: Any, text: str | None = None, *, tokens_per_batch: int = 128, batches: int = 4) -> Batches:
    """Return the beginning of a text as batches of one row: `input_ids` and `attention_mask`, (1, tokens), int64.

    Every batch begins and ends with the special tokens that `tokenizer` puts around a text of its own. The last may be
    shorter than the others.

    Args:
        tokenizer: A tokenizer of transformers.
        text: The text; by default a short one of ours, 500 to 900 tokens of prose, code and numbers.
        tokens_per_batch: With the special tokens.
        batches: How many there are at most: as many as the text fills.

    Raises:
        NothingToCompareError: If the text has fewer than two tokens: no token of it follows another.
    """
    plain = list(tokenizer(BUILT_IN_TEXT if text is None else text, add_special_tokens=False, verbose=False).input_ids)
    if len(plain) < 2:
        raise NothingToCompareError(f"the text has {len(plain)} tokens", "pass a longer one: a few sentences at least")
    before, after = _special_tokens(tokenizer)
    room = max(2, tokens_per_batch - len(before) - len(after))
    pieces = [plain[start : start + room] for start in range(0, len(plain), room)][:batches]
    return [_batch(torch.tensor([before + piece + after])) for piece in pieces if len(piece) > 1]


def random_batches(vocab_size: int, *, tokens_per_batch: int = 128, batches: int = 4, seed: int = 0) -> Batches:
    """Return batches of random tokens, for checkpoints that come without a tokenizer.

    A text is better where there is a tokenizer: a trained model has never seen noise, its activations there are not
    those of its use, and the perplexity ratio says nothing.
    """
    random = torch.Generator().manual_seed(seed)
    return [_batch(torch.randint(vocab_size, (1, tokens_per_batch), generator=random)) for _ in range(batches)]


def _batch(ids: Tensor) -> dict[str, Tensor]:
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return what `tokenizer` puts before and after a text. Transformers has no method left that says so."""
    plain = list(tokenizer("a b", add_special_tokens=False).input_ids)
    whole = list(tokenizer("a b").input_ids)
    for start in range(len(whole) - len(plain) + 1):
        if plain and whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    return [], []
