"""Which modules hold codes of a quantizer in place of numbers: told by what is in them, whatever the config says."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

_NEVER_CODES = ("torch", "transformers", "transformers_modules", "__main__")


def holds_codes(module: nn.Module) -> bool:
    """Whether the weights of this very module are codes. A quantizer that dequantized leaves plain floating weights.

    Whole numbers beside a plain weight are its zero points, as compressed-tensors leaves them after the first forward.
    """
    weight = module._parameters.get("weight")
    if weight is not None and _is_plain(weight):
        return False
    return not all(_is_plain(tensor) for tensor in _stored(module)) or _hides_its_weights(module)


def _stored(module: nn.Module) -> Iterator[Tensor]:
    """Yield the parameters and saved buffers of the module itself; counters, positions and masks are none of them."""
    yield from (parameter for parameter in module._parameters.values() if parameter is not None)
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set and buffer.ndim > 1:
            yield buffer


def _is_plain(tensor: Tensor) -> bool:
    """Whether the numbers of `tensor` are of 16 bit or more, in a class of torch's own; int64 are positions."""
    if isinstance(tensor, nn.Parameter) and type(tensor) is not nn.Parameter and not hasattr(tensor, "_local_tensor"):
        return False
    return tensor.dtype.itemsize > 1 and (tensor.is_floating_point() or tensor.dtype.itemsize == 8)


def _hides_its_weights(module: nn.Module) -> bool:
    """Whether the class is a quantizer's, which may keep codes in attributes: the experts of MXFP4 do."""
    home = type(module).__module__
    is_a_quantizers = home.startswith("transformers.integrations.") or home.partition(".")[0] not in _NEVER_CODES
    return is_a_quantizers and not any(True for _ in module.children())
