"""A rescale, a raise and scaled linear layers that have not helped are taken back bit for bit, as every remedy is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engineered import engineered, prompts
from torch import Tensor, nn

from safe_dtype import guard, report
from safe_dtype.rescaling import rescaled_of

pytestmark = pytest.mark.filterwarnings("ignore:float16 was asked for", "ignore:.*Going on in")
RESCALE, SCALED = "an exact rescaling", "2 linear layers scaled by what goes in"
FIRST = {"llama": RESCALE, "gemma2": RESCALE, "phi3_interior": RESCALE, "t5": RESCALE, "opt_interior": SCALED}


def traces(model: nn.Module) -> dict[str, Any]:
    """Return everything that a remedy may change, by where it is: tensors, numbers, hooks, classes, dicts."""
    found: dict[str, Any] = {name: one.detach().clone() for name, one in model.state_dict(keep_vars=True).items()}
    for path, module in model.named_modules():
        found[f"{path} class"] = type(module)
        for name, value in vars(module).items():
            if name.startswith("_safe_dtype_guard"):
                continue
            if isinstance(value, dict):
                found[f"{path} {name}"] = (type(value), [(key, id(one)) for key, one in value.items()])
            else:
                found[f"{path} {name}"] = value if isinstance(value, (float, int, str)) else type(value)
    for name, parameter in model.named_parameters():
        found[f"{name} gradients"] = len(parameter._backward_hooks or ())
    return found


def differs(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return the names of what is there once only, or differs in any bit."""
    names = one.keys() ^ other.keys()
    for name in one.keys() & other.keys():
        before, after = one[name], other[name]
        if isinstance(before, Tensor):
            if before.dtype != after.dtype or not torch.equal(before, after):
                names.add(name)
        elif before != after:
            names.add(name)
    return sorted(names)


class Spoiler:
    """Hooks on a model: what it makes of one prompt in float16 is no number until so many remedies were applied.

    Then it ends, and so it does where the model has left float16.
    """

    def __init__(self, model: Any, batch: dict[str, Tensor], remedies: int) -> None:
        self.model, self.remedies = model, remedies
        self.ids = batch["input_ids"]
        self.is_on = False
        self.was: list[str] = []
        head = model.get_output_embeddings()
        self.handles = [
            model.register_forward_pre_hook(self.begin, with_kwargs=True), head.register_forward_hook(self)
        ]  # fmt: skip

    def begin(self, _module: nn.Module, _args: Any, kwargs: Any) -> None:
        """Look whether it is this prompt."""
        ids = kwargs.get("input_ids")
        self.is_on = ids is not None and torch.equal(ids, self.ids)

    def __call__(self, head: Any, _args: Any, output: Tensor) -> Tensor | None:
        """Spoil, or end."""
        events = report(self.model).events
        if not self.is_on or not events:
            return None
        self.was = [event.remedy for event in events]
        if len(events) == self.remedies or self.was[-1] == "float32":
            raise KeyboardInterrupt
        return output * torch.nan if head.weight.dtype == torch.float16 else None  # a trial may be in float32

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()


# Of one family every length of a chain, trained and not; of the others the first remedy and the longest chain.
CHAINS = [
    pytest.param(
        family, remedies, trained,
        marks=[pytest.mark.slow] if family != "llama" and (trained or remedies in (2, 3)) else [],
        id=f"{family}-{remedies}-{'trained' if trained else 'frozen'}",
    )
    for family in FIRST
    for remedies in (1, 2, 3, 9)
    for trained in (False, True)
]  # fmt: skip


@pytest.mark.parametrize(("family", "remedies", "trained"), CHAINS)
def test_a_chain_that_fails(family: str, remedies: int, trained: bool) -> None:
    """Whatever follows what has not helped, nothing of it is left."""
    model: Any = guard(engineered(family).half().requires_grad_(trained))
    (batch,) = prompts(family, count=1, tokens=24, seed=3)
    spoiler = Spoiler(model, batch, remedies)
    before = traces(model)
    with pytest.raises(KeyboardInterrupt), torch.inference_mode():
        model(**batch)
    assert spoiler.was[0] == FIRST[family]
    assert len(spoiler.was) == remedies or spoiler.was[-1] == "float32"
    assert not differs(before, traces(model))
    assert report(model).events == ()
    assert (report(model).rescale, rescaled_of(model)) == (None, None)
    # And it is found anew.
    spoiler.remove()
    with torch.inference_mode():
        assert model(**batch).logits.isfinite().all()
    assert report(model).events[0].remedy == FIRST[family]
