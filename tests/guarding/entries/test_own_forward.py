"""What an instance has in the place of its class's `forward` is guarded as well, and found again afterwards."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import pickle
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
import transformers as tf
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

from safe_dtype import guard, report, unguard
from safe_dtype.guarding.entries.own_forward import OwnForward
from safe_dtype.testing import fault

IDS = torch.tensor([[5, 6, 7, 8]])
MODULE = "encoder.layer.1.output.dense"


def bert() -> Any:
    """Return one in bfloat16."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return tf.BertModel(tf.BertConfig(**sizes, vocab_size=60)).eval().bfloat16()


def hooked(model: Any) -> Any:
    """Put a hook of accelerate on it, as `device_map` does."""
    return add_hook_to_module(model, ModelHook())


def preset(model: Any) -> Any:
    """Set an argument for good."""
    model.forward = functools.partial(model.forward, output_attentions=False)
    return model


def patched(model: Any) -> Any:
    """Put another method in, as libraries of faster kernels do."""
    forward = model.forward

    def faster(self: Any, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        """Be faster."""
        assert self is not None
        return forward(input_ids, **kwargs)

    model.forward = MethodType(faster, model)
    return model


def compiled(model: Any) -> Any:
    """Compile its forward."""
    model.forward = torch.compile(model.forward, backend="eager")
    return model


# Torch 2.6 cannot compile the plain models of transformers 5.16.
_COMPILED = pytest.param(compiled, marks=pytest.mark.needs("torch>=2.13"))
WAYS = pytest.mark.parametrize("way", [hooked, preset, patched, _COMPILED], ids=lambda way: way.__name__)


@WAYS
@pytest.mark.parametrize("by_name", [True, False])
def test_guarded(way: Callable[[Any], Any], by_name: bool) -> None:
    """Called by its name or as ever, it is guarded, once; afterwards it is there as before."""
    model = way(bert())
    own = model.__dict__["forward"]
    truth = copy.deepcopy(bert()).float()(IDS).last_hidden_state
    guard(model)
    assert guard(model).forward.__wrapped__ is own
    assert inspect.signature(model.forward) == inspect.signature(own)
    with torch.no_grad(), fault(model, MODULE, "nan"):
        output = (model.forward if by_name else model)(IDS)
    assert torch.equal(output.last_hidden_state, truth)
    assert [event.module for event in report(model).events] == [MODULE]
    unguard(model)
    assert model.__dict__["forward"] is own


def test_guarded_first() -> None:
    """A hook that comes after the guard is run around it, and leaves the guard when it goes."""
    model = hooked(guard(bert()))
    for _ in range(2):
        with torch.no_grad(), fault(model, MODULE, "nan"):
            assert model.forward(IDS).last_hidden_state.isfinite().all()
        assert len(report(model).events) == 1
        model = guard(remove_hook_from_module(model).bfloat16())


def test_its_attributes() -> None:
    """It answers as the method that it stands for."""
    model = guard(patched(bert()))
    assert (model.forward.__self__, model.forward.__name__) == (model, "faster")
    assert model.forward.__func__.__doc__ == "Be faster."


def test_copies() -> None:
    """A deep copy has a guarded one of its own, around a method of the copy; a pickled one what was there."""
    model = guard(patched(bert()))
    copied = copy.deepcopy(model)
    assert isinstance(copied.forward, OwnForward)
    assert copied.forward.__self__ is copied
    printing = bert()
    printing.forward = functools.partial(print, "nothing")
    again = pickle.loads(pickle.dumps(guard(printing)))
    assert isinstance(again.__dict__["forward"], functools.partial)


@pytest.mark.needs("torch>=2.13")  # torch 2.6 does not follow transformers' decorators in one whole graph
def test_in_a_graph() -> None:
    """A compiler sees what it stands for, in one whole graph."""
    model = guard(patched(bert()))
    graph = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(graph(IDS).last_hidden_state, model(IDS).last_hidden_state)
    torch.compiler.reset()


def test_the_model_goes() -> None:
    """It keeps no model alive: what stands for a function refers to its module weakly."""
    model = bert()
    model.forward = functools.partial(print, "nothing")
    forward = guard(model).forward
    del model
    gc.collect()
    assert forward() is None
