"""Which modules hold codes: those whose own weights are none that torch multiplies."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from safe_dtype.numerics.packed_weights import holds_codes


class Layer(nn.Module):
    """A layer with the tensors that a test gives it."""

    def __init__(self, parameters: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor] | None = None) -> None:
        super().__init__()
        for name, tensor in parameters.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        for name, tensor in (buffers or {}).items():
            self.register_buffer(name, tensor)


Layer.__module__ = "transformers.models.of_a_test"
WORDS, HALF = torch.zeros(4, 4, dtype=torch.int32), torch.zeros(4, 4, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("layer", "has_codes"),
    [
        (nn.Linear(4, 4), False), (nn.LayerNorm(4), False), (nn.GELU(), False), (nn.BatchNorm1d(4), False),
        (nn.Linear(4, 4, dtype=torch.bfloat16), False),
        (Layer({"weight_packed": WORDS, "weight_scale": HALF}), True),  # compressed-tensors, before its first forward
        (Layer({"weight": HALF, "weight_scale": HALF, "weight_zero_point": WORDS}), False),  # ... and after it
        (Layer({"bias": HALF[0]}, {"qweight": WORDS, "scales": HALF}), True),  # AWQ, GPTQ
        (Layer({"weight": torch.zeros(4, 4, dtype=torch.uint8)}), True),  # GGUF that stays packed
        (Layer({"weight": torch.zeros(4, 4, dtype=torch.float8_e4m3fn), "weight_scale_inv": HALF}), True),
        (Layer({}, {"position_ids": torch.arange(4)[None]}), False),
    ],
    ids=range(11),
)  # fmt: skip
def test_codes(layer: nn.Module, *, has_codes: bool) -> None:
    """A layer is told by its tensors, whatever it is called."""
    assert holds_codes(layer) is has_codes


def test_hidden_codes() -> None:
    """A leaf of a quantizer's own package may keep its codes where no parameter shows."""

    class Experts(nn.Module):
        """As those of MXFP4."""

    assert Experts.__module__ not in ("torch", "transformers")
    Experts.__module__ = "transformers.integrations.mxfp4"
    assert holds_codes(Experts())
