"""A tiny float64 twin of any architecture of transformers, and inputs for it."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PretrainedConfig, PreTrainedModel

from ...hub.errors import InvalidConfigError
from .config_keys import is_count
from .isolated_build import TooLargeError, at_most, unnoticed
from .tiny_config import FIRST_TOKEN, VOCABULARY_SIZE, tiny_configs

BATCHES = 4
ROWS, TOKENS, TARGET_TOKENS = 2, 16, 12
SAMPLES = 1600  # of a waveform
MOST_PARAMETERS = 3_000_000

# What modelling code raises over a config that it does not like: anything but what stops the process.
_FAILURES = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError, InvalidConfigError,
    TypeError, ValueError,
)  # fmt: skip
_WIDER = {
    torch.float32: torch.float64, torch.float16: torch.float64, torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
}  # fmt: skip
_ROUTER_BIAS = re.compile(r"(correction|expert)_bias$")


class TwinError(Exception):
    """No usable twin comes out of a config."""

    def __init__(self, model_class: str, reason: str) -> None:
        super().__init__(model_class, reason)
        self.model_class, self.reason = model_class, reason

    def __str__(self) -> str:
        return f"no twin of {self.model_class}: {self.reason}"


@dataclass(frozen=True)
class Twin:
    """A tiny model with every kind of layer of the real one, and different batches that it takes."""

    model: PreTrainedModel  # float64, eval, eager, without a cache; every parameter random
    batches: tuple[Mapping[str, Tensor], ...]


class InFloat64(TorchFunctionMode):
    """Every cast to a narrower float goes to float64 instead, of complex numbers to complex128.

    Modelling code upcasts to float32 in norms, rotary embeddings, softmax and routers: from float64 that is a downcast.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float or func is torch.Tensor.half or func is torch.Tensor.bfloat16:
            func = torch.Tensor.double
        args = tuple(map(_wider, args))
        kwargs = {key: _wider(value) for key, value in (kwargs or {}).items()}
        return func(*args, **kwargs)


def _wider(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return _WIDER.get(value, value)
    if value is torch.FloatTensor or (isinstance(value, str) and value == "torch.FloatTensor"):
        return torch.float64
    return value


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Compute in float64 throughout, constants that modelling code makes included."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with InFloat64():
            yield
    finally:
        torch.set_default_dtype(before)


def run_twin(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the logits, or the last hidden state of a model without a head, in float64."""
    with exact():
        output = model(**batch)
    for name in ("logits", "last_hidden_state"):
        if isinstance(tensor := getattr(output, name, None), Tensor):
            return tensor
    return next(value for value in output.values() if isinstance(value, Tensor))


def make_twin(
    model_class: type[PreTrainedModel], config: PretrainedConfig, *, gain: float = 1.0, seed: int = 0
) -> Twin:
    """Return a twin of `model_class`, built from the real `config` shrunk.

    Args:
        model_class: The class to build, a causal LM or any other.
        config: Of a real checkpoint; it stays as it is.
        gain: Of every weight matrix: 1 keeps activations around 1.
        seed: Of weights and inputs. The random state of the process is left alone.

    Raises:
        TwinError: If no tiny config builds and runs with finite outputs.
    """
    reasons = []
    for tiny in tiny_configs(config_for(model_class, config)):
        twin = _attempt(model_class, tiny, gain, seed)
        if isinstance(twin, Twin):
            return twin
        reasons.append(twin)
    # What is said of the most faithful one: later ones may stumble over what was changed for them.
    raise TwinError(model_class.__name__, reasons[0])


def _attempt(model_class: type[PreTrainedModel], config: PretrainedConfig, gain: float, seed: int) -> Twin | str:
    """Return a twin, or why there is none."""
    try:
        with unnoticed(seed):
            return _build(model_class, config, gain, seed)
    except TooLargeError as exc:
        return str(exc)
    except _FAILURES as exc:
        return f"{type(exc).__name__}: {exc}"


def _build(model_class: type[PreTrainedModel], config: PretrainedConfig, gain: float, seed: int) -> Twin | str:
    for part in configs_in(config):
        part.use_cache, part.return_dict = False, True
        part.__dict__.pop("quantization_config", None)
        part._experts_implementation = "eager"
    with exact(), torch.device("cpu"), at_most(MOST_PARAMETERS):
        model = model_class._from_config(config, dtype=torch.float64, attn_implementation="eager").double().eval()
    model.requires_grad_(requires_grad=False)
    generator = torch.Generator().manual_seed(seed)
    randomize(model, gain, generator)
    batches = tuple(_batch(model, generator) for _ in range(BATCHES))
    with torch.no_grad():
        if not run_twin(model, batches[0]).isfinite().all():
            return "its outputs are not finite"
    return Twin(model, batches)


def config_for(model_class: type[PreTrainedModel], config: PretrainedConfig) -> PretrainedConfig:
    """Return the part of `config` that `model_class` is built from, as the Auto classes do."""
    wanted = getattr(model_class, "config_class", None) or PretrainedConfig
    return next((one for one in configs_in(config) if isinstance(one, wanted)), config)


def configs_in(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    """Yield a config and those within it."""
    yield config
    for value in list(vars(config).values()):
        if isinstance(value, PretrainedConfig):
            yield from configs_in(value)


def randomize(model: nn.Module, gain: float, generator: torch.Generator) -> None:
    """Draw every parameter: matrices keep the size of what they multiply, vectors move away from their start."""

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.dtype)

    # A choice of experts must not follow from such a bias alone: it stays small beside the scores.
    for name, bias in [*model.named_parameters(), *model.named_buffers()]:
        if _ROUTER_BIAS.search(name) and bias.is_floating_point():
            bias.data = bias + 0.05 * noise(bias)
    drawn: set[int] = set()  # a tied weight is one parameter of two modules
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if _ROUTER_BIAS.search(name) or not parameter.is_floating_point() or id(parameter) in drawn:
                continue
            drawn.add(id(parameter))
            if parameter.dim() < 2:
                parameter.data = parameter + 0.3 * noise(parameter)
            elif isinstance(module, nn.Embedding):
                parameter.data = 0.3 * noise(parameter)
            else:
                of_kernel = isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
                summed = math.prod(parameter.shape[1:]) if of_kernel else parameter.shape[-1]
                parameter.data = gain * noise(parameter) / math.sqrt(summed)


def _batch(model: PreTrainedModel, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw inputs: tokens that no key of the config names, or noise of the shape that its main input has."""
    parts = [vars(part) for part in configs_in(model.config)]

    def size(key: str, otherwise: int) -> int:
        return int(next((part[key] for part in parts if is_count(part.get(key))), otherwise))

    def tokens(count: int) -> Tensor:
        vocabulary = getattr(model.config.get_text_config(), "vocab_size", VOCABULARY_SIZE)
        return torch.randint(FIRST_TOKEN, vocabulary, (ROWS, count), generator=generator)

    def noise(*shape: int) -> Tensor:
        return torch.randn(ROWS, *shape, generator=generator, dtype=torch.float64)

    name = model.main_input_name
    if name == "pixel_values":
        side = size("image_size", 32)
        main = noise(size("num_channels", 3), side, side)
    elif name == "input_features":
        main = noise(size("num_mel_bins", 16), 2 * size("max_source_positions", 16))
    elif name == "input_values":
        main = noise(SAMPLES)
    else:
        name, main = "input_ids", tokens(TOKENS)
    return {name: main} | ({"decoder_input_ids": tokens(TARGET_TOKENS)} if model.config.is_encoder_decoder else {})
