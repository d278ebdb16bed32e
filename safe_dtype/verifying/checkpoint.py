"""A checkpoint on disk, loaded as plain transformers loads it, and a text to run it on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

from ..checkpoints.known_config import known_config
from ..errors import CheckpointError, NothingToCompareError
from ..facts import Dtype
from .in_one_dtype import in_one_dtype
from .texts import random_batches, text_batches

_TOKENS_PER_BATCH = 128
_FEW_TOKENS = 8  # few rows may take other kernels than many


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that reads text, and where it is run."""

    source: str
    device: str
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of from_pretrained: revision, gguf_file, token, ...
    how: Mapping[str, Any] = field(default_factory=dict)  # those for the model alone: attn_implementation, ...

    def load(self, dtype: Dtype) -> Any:
        """Return the model that the checkpoint names, whole, in `dtype`.

        Raises:
            CheckpointError: If transformers cannot load it, or its main input is not text.
        """
        with self._readable("weights"):
            config = known_config(self.source, **self.arguments)
            architecture = next(iter(config.architectures or ()), "")
            # A GGUF file names no class of transformers; all that transformers reads are language models.
            is_gguf = self.arguments.get("gguf_file") is not None
            otherwise = transformers.AutoModelForCausalLM if is_gguf else transformers.AutoModel
            model_class = getattr(transformers, architecture, otherwise)
            model = model_class.from_pretrained(
                self.source, dtype=getattr(torch, dtype.name), **self.arguments, **self.how
            )
            if getattr(config, "quantization_config", None) is not None:
                in_one_dtype(model, getattr(torch, dtype.name))
        if model.main_input_name != "input_ids":
            problem = f"{type(model).__name__} reads {model.main_input_name}, not text"
            raise CheckpointError(self.source, problem, "call safe_dtype.measure_drift with batches of its inputs")
        return model.to(self.device).eval()

    def batches(self, text: str | None = None, *, tokens: int = 512, few: int = 0) -> list[dict[str, Any]]:
        """Return a text in batches of up to 128 tokens, with what the architecture needs beside it.

        Args:
            text: The text; by default the built-in one, see `text_batches`.
            tokens: How many tokens of the text to use, at most.
            few: How many batches of 8 tokens to add, from the beginning of the text.

        Raises:
            CheckpointError: If there is no tokenizer that transformers can load.
            NothingToCompareError: If the text is too short.
        """
        config = self._config()
        tokenizer = self._tokenizer()
        length = min(_TOKENS_PER_BATCH, _longest(config), tokens)
        batches = text_batches(tokenizer, text, tokens_per_batch=length, batches=math.ceil(tokens / length))
        if few:
            batches += text_batches(tokenizer, text, tokens_per_batch=_FEW_TOKENS, batches=few)
        return [_completed(batch, config) for batch in batches]

    def random_batches(self, vocab_size: int, *, tokens: int = 512) -> list[dict[str, Any]]:
        """Return random tokens in batches of up to 128, each with the model's first token before them, where it has one.

        For a checkpoint without a tokenizer: a trained model has never seen noise.

        Raises:
            CheckpointError: If its config cannot be read.
            NothingToCompareError: If it has no vocabulary.
        """
        config = self._config()
        if vocab_size < 1:
            raise NothingToCompareError(f"{self.source} has no vocabulary", "pass inputs of its own")
        length = min(_TOKENS_PER_BATCH, _longest(config), tokens)
        batches = random_batches(vocab_size, tokens_per_batch=length, batches=math.ceil(tokens / length))
        first = getattr(config.get_text_config(), "bos_token_id", None)
        if isinstance(first, int) and 0 <= first < vocab_size:
            for batch in batches:
                batch["input_ids"][:, 0] = first
        return [_completed(batch, config) for batch in batches]

    def _tokenizer(self) -> Any:
        """Return the tokenizer beside the weights; of a GGUF file without one that of its folder or repository."""
        gguf_file = self.arguments.get("gguf_file")
        if gguf_file is None:
            with self._readable("tokenizer"):
                return transformers.AutoTokenizer.from_pretrained(self.source, **self.arguments)
        beside = {name: value for name, value in self.arguments.items() if name != "gguf_file"}
        try:
            return transformers.AutoTokenizer.from_pretrained(self.source, **self.arguments)
        except (OSError, ValueError, KeyError) as exc:
            with suppress(OSError, ValueError):
                return transformers.AutoTokenizer.from_pretrained(self.source, **beside)
            problem = f"transformers makes no tokenizer of what is in {gguf_file} ({exc})"
            advice = "put tokenizer.json and tokenizer_config.json of the original model beside it"
            raise CheckpointError(self.source, problem, advice) from exc

    def _config(self) -> Any:
        with self._readable("config"):
            return known_config(self.source, **self.arguments)

    @contextmanager
    def _readable(self, what: str) -> Iterator[None]:
        """Raise CheckpointError in place of what transformers raises where it cannot read the checkpoint."""
        try:
            yield
        except (OSError, ValueError) as exc:
            problem = f"transformers cannot load its {what} ({exc})"
            raise CheckpointError(self.source, problem, "pass a checkpoint that transformers can load") from exc


def _longest(config: Any) -> int:
    return getattr(config.get_text_config(), "max_position_embeddings", None) or _TOKENS_PER_BATCH


def _completed(batch: dict[str, Any], config: Any) -> dict[str, Any]:
    # The decoder of an encoder-decoder needs a text as well: it gets the same one.
    more = {"labels": batch["input_ids"]} if config.is_encoder_decoder else {}
    return {**batch, **more, "output_hidden_states": True}
