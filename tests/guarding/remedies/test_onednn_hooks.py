"""oneDNN is off while a module runs, and on again afterwards, whatever happens."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from safe_dtype.guarding.remedies.onednn_hooks import WithoutOneDNN, runs_without_onednn
from safe_dtype.numerics.onednn import is_in_use

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


class Asks(nn.Module):
    """A module that notes whether it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bool] = []
        self.error: BaseException | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Note it."""
        self.seen.append(is_in_use())
        if self.error is not None:
            raise self.error
        return x


def test_for_the_module_alone() -> None:
    """It is off in the module, and on before and after, and in the modules beside it."""
    model = nn.Sequential(Asks(), Asks(), Asks())
    hooks = WithoutOneDNN()
    hooks.attach(model[1])
    model(torch.ones(1))
    assert [part.seen for part in model] == [[True], [False], [True]]
    assert is_in_use()
    assert runs_without_onednn(model[1])
    hooks.detach(model[1])
    model(torch.ones(1))
    assert model[1].seen == [False, True]
    assert not any((model[1]._forward_hooks, model[1]._forward_pre_hooks, model[1]._forward_hooks_always_called))


@pytest.mark.parametrize("error", [RuntimeError(), KeyboardInterrupt()])
def test_however_it_ends(error: BaseException) -> None:
    """After an exception it is on again; after an interrupt once the module was called the next time."""
    module = Asks()
    WithoutOneDNN().attach(module)
    module.error = error
    with pytest.raises(type(error)):
        module(torch.ones(1))
    assert is_in_use() or isinstance(error, KeyboardInterrupt)
    module.error = None
    module(torch.ones(1))
    assert is_in_use()
    assert module.seen == [False, False]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies(copied: object) -> None:
    """A copy, and a pickle, has hooks of its own that go off together."""
    module = Asks()
    WithoutOneDNN().attach(module)
    twin = copied(module)  # type: ignore[operator]
    twin(torch.ones(1))
    assert (twin.seen, module.seen) == ([False], [])
    assert is_in_use()
    (hooks,) = twin._forward_hooks.values()
    hooks.detach(twin)
    assert not twin._forward_pre_hooks
