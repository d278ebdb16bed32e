"""Another forward in a module, or in its class, is seen."""

from __future__ import annotations

from torch import nn

from safe_dtype.rescaling.folding.own_code import OwnCode


def test_forward_of_a_class_of_its_own() -> None:
    """What looks at forwards sees that of a class, and the one of an instance; ours count as what was there."""
    layer = nn.Linear(2, 2)
    code = OwnCode([("layer", layer)])
    assert code.replaced() is None
    layer.forward = layer.forward  # type: ignore[method-assign]
    assert code.replaced() == "layer"
    del layer.forward
    assert code.replaced() is None
    layer.__class__ = type("Another", (nn.Linear,), {})
    assert code.replaced() is None, "it runs the same code"
    layer.__class__ = type("Another", (nn.Linear,), {"forward": lambda _, value: value})
    assert code.replaced() == "layer"
