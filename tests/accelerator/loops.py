"""Generations on the device, plain and guarded: everything that they give, and what the device counts meanwhile."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from accelerator.rehearsal import Counts, Rehearsal
from guarding.generators import BOTH_ROWS, IDS, NEW_TOKENS, ONE_ROW, generator
from guarding.oracle import Switch

from safe_dtype import FLOAT32

FP16, FP32 = torch.float16, torch.float32
SAMPLED = {"do_sample": True, "temperature": 1.5, "top_k": 0}
STATIC = {"cache_implementation": "static", "disable_compile": True}
FOUR_ROWS = {"input_ids": IDS.repeat(2, 1), "attention_mask": torch.ones_like(IDS.repeat(2, 1))}

# By name: the architecture, how it generates, and what it takes beyond a plain one: reads a generation, operations of the
# device a token.
LOOPS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "greedy": ("qwen3", ONE_ROW, 1, 4),
    "sampling": ("qwen3", ONE_ROW | SAMPLED, 1, 5),
    "padded-batch": ("qwen3", BOTH_ROWS, 1, 6),
    "sampled-batch": ("qwen3", BOTH_ROWS | SAMPLED | {"num_return_sequences": 2}, 1, 7),
    "processors": (
        "qwen3",
        BOTH_ROWS | {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 2},
        1,
        6,
    ),
    "streamer": ("qwen3", ONE_ROW | SAMPLED | {"streamer": True}, 1, 5),
    "tokens-alone": ("qwen3", BOTH_ROWS | SAMPLED | {"return_dict_in_generate": False}, 1, 7),
    "static": ("qwen3", ONE_ROW | STATIC, 2, 5),  # and once how far its layers are filled
    "no-cache": ("qwen3", BOTH_ROWS | {"use_cache": False}, 1, 6),
    "chunked-prefill": ("qwen3", BOTH_ROWS | {"prefill_chunk_size": 2}, 4, 6),  # and once for each chunk
    "sliding": ("mistral", BOTH_ROWS, 1, 6),
    "static-sliding": ("gemma3", BOTH_ROWS | STATIC, 2, 13),
    "states": ("mamba", ONE_ROW | SAMPLED, 1, 11),
    "encoder-decoder": ("t5", BOTH_ROWS, 2, 6),  # and once for the encoder
}
MOMENTS = {"prefill": 0, "first": 1, "middle": 5, "last": NEW_TOKENS - 1}
MODULES = {"mamba": "backbone.layers.1.mixer.out_proj", "t5": "decoder.block.1.layer.2.DenseReluDense.wi"}


@dataclass(frozen=True)
class Made:
    """What a generation gave: tensors by name, what was streamed, and the random state that it left."""

    tensors: dict[str, torch.Tensor]
    streamed: list[Any]
    random: torch.Tensor

    def differs(self, other: Made) -> list[str]:
        """Return the names of what is not the same, bit for bit."""
        names = self.tensors.keys() | other.tensors.keys()
        differing = [
            name for name in sorted(names)
            if name not in self.tensors or name not in other.tensors
            or self.tensors[name].dtype != other.tensors[name].dtype
            or not torch.equal(self.tensors[name], other.tensors[name])
        ]  # fmt: skip
        differing += ["streamed"] * (self.streamed != other.streamed)
        return differing + ["random"] * (not torch.equal(self.random, other.random))


class Rolls:
    """A streamer that keeps what it gets, one roll of tokens a time."""

    def __init__(self) -> None:
        self.rolls: list[Any] = []

    def put(self, value: torch.Tensor) -> None:
        """Take the tokens of all rows."""
        self.rolls.append(value.flatten().tolist())

    def end(self) -> None:
        """Take the end."""
        self.rolls.append("end")


def generate(model: Any, rehearsal: Rehearsal, **options: Any) -> Made:
    """Generate on the device from a seed with everything returned."""
    torch.manual_seed(1)
    where = rehearsal.device()
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "return_dict_in_generate": True} | options
    options = {name: one.to(where) if isinstance(one, torch.Tensor) else one for name, one in options.items()}
    streamer = Rolls() if options.pop("streamer", False) else None
    if options["return_dict_in_generate"]:
        options |= {"output_scores": True, "output_logits": True, "output_hidden_states": True}
    output = model.generate(**options, streamer=streamer)
    tensors = {} if isinstance(output, dict) else {"sequences": output.cpu()}
    if isinstance(output, dict):
        _collect(tensors, "", [(name, one) for name, one in output.items() if name != "past_key_values"])
    return Made(tensors, streamer.rolls if streamer is not None else [], rehearsal.backend.get_rng_state(where))


def _collect(tensors: dict[str, torch.Tensor], path: str, items: Any) -> None:
    for name, item in items:
        if isinstance(item, torch.Tensor):
            tensors[f"{path}{name}"] = item.cpu()
        elif item is not None:
            _collect(tensors, f"{path}{name}.", enumerate(item))


@cache
def on_the_host(name: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Return a model of this architecture; each test takes copies of it."""
    model = generator(name, dtype)
    model.generation_config.return_dict_in_generate = None
    return model


def on_the_device(name: str, rehearsal: Rehearsal, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Return a model of this architecture on the first device."""
    return copy.deepcopy(on_the_host(name, dtype)).to(rehearsal.device())


_switched: dict[Any, Made] = {}


def switched(loop: str, call: int, rehearsal: Rehearsal) -> Made:
    """Return what the plain model gives that is brought to float32 by hand at its call number `call`."""
    if (loop, call) not in _switched:
        name, options, *_ = LOOPS[loop]
        model = on_the_device(name, rehearsal)
        Switch(model, call, FLOAT32)
        _switched[loop, call] = generate(model, rehearsal, **options)
    return _switched[loop, call]


def counts(model: Any, rehearsal: Rehearsal, tokens: int, options: dict[str, Any]) -> Counts:
    """Return what the device counts while so many tokens are generated."""
    with rehearsal.counting() as counting:
        generate(model, rehearsal, **options | {"max_new_tokens": tokens})
    # Taking the results to the host is none of the loop's, and the same for both.
    return counting.counts
