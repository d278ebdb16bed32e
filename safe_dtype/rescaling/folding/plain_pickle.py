"""A rescaled model that is pickled: the plain one, so that it can be read where safe_dtype is not installed."""

from __future__ import annotations

import copy
import logging
from typing import Any
from weakref import ref

import torch
from torch import nn

from ...facts import FLOAT16, FLOAT32
from ...models.islands import Island
from ...models.saving.saved_dtype import dtype_of_rescued
from ...models.watched_modules import watch_no_more
from .alone import alone
from .rescaled import Rescaled, rescaled_of
from .taking_back import leave_for

logger = logging.getLogger(__name__)

_OURS = ("safe_dtype.rescaling.", "safe_dtype.models.shift_hooks")
_NAMES = ("_safe_dtype_", "__reduce_ex__", "__deepcopy__")  # how entries of ours in the `__dict__` of a module begin
_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks",
    "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip
_OF_HOOKS = ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")


class _Pickled:
    """What a module of a rescaled model has as its `__reduce_ex__`: it is pickled without the rescale.

    The whole model in the dtype of its checkpoint, whose range holds what it computes; a part of it as it is copied.
    """

    def __init__(self, module: nn.Module, model: nn.Module) -> None:
        self._module, self._model = ref(module), ref(model)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Pickled:
        module = memo[id(self._module())]
        return _Pickled(module, memo.get(id(self._model()), module))

    def __call__(self, protocol: Any) -> Any:
        """Return how the module is pickled."""
        module = self._module()
        assert module is not None
        with alone(self._model() or module):  # a step has hooks of its own on modules while it runs
            copied = _plain_copy(module)
        return _reduced(copied, protocol)


class _Copied:
    """What it has as its `__deepcopy__`, which would ask the other one: a copy is rescaled as the model is."""

    def __init__(self, module: nn.Module) -> None:
        self._module = ref(module)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Copied:
        return _Copied(memo[id(self._module())])

    def __call__(self, memo: dict[int, Any]) -> Any:
        """Return a copy."""
        module: Any = self._module()
        function, args, state = _reduced(module, 4)[:3]
        copied = function(*args)
        memo[id(module)] = copied
        copied.__setstate__(copy.deepcopy(state, memo))
        return copied


def _reduced(module: Any, protocol: int) -> Any:
    method: Any = type(module).__reduce_ex__
    return method(module, protocol)


def prepare_pickling(module: nn.Module, model: nn.Module) -> None:
    """Have a module of `model`, which is rescaled, pickled without the rescale."""
    module.__dict__["__reduce_ex__"], module.__dict__["__deepcopy__"] = _Pickled(module, model), _Copied(module)


def pickle_as_others(module: nn.Module) -> None:
    """Undo `prepare_pickling`."""
    for name in ("__reduce_ex__", "__deepcopy__"):
        module.__dict__.pop(name, None)


def _plain_copy(module: nn.Module) -> nn.Module:
    """Return a copy of `module` that has nothing of ours: where that changes nothing it has the same parameters."""
    parameters = list(module.parameters())
    is_rescaled = rescaled_of(module) is not None
    # New parameters, which share their memory with the old ones until they are given other values.
    memo: dict[int, Any] = {id(one): nn.Parameter(one.data, one.requires_grad) for one in parameters}
    with torch.inference_mode(mode=False), torch.no_grad():
        copied = copy.deepcopy(module, memo)
        rescaled = rescaled_of(copied)
        if is_rescaled and rescaled is not None and rescaled.rescale.shifts:
            _take_back(rescaled)
    for part in copied.modules():
        _strip(part)
    return copied


def _take_back(rescaled: Rescaled) -> None:
    model = rescaled.fold.model
    saved = dtype_of_rescued(model)
    dtype = saved if saved.largest > FLOAT16.largest else FLOAT32
    leave_for(rescaled, dtype)
    logger.info("%s is pickled without its rescale, in %s", type(model).__name__, dtype)


def _strip(module: nn.Module) -> None:
    """Take off what the rescale has put on a copied module."""
    own = module.__dict__
    watch_no_more(module)
    for name in [name for name in own if name.startswith(_NAMES)]:
        del own[name]
    for name in _HOOKS:
        hooks = own.get(name, {})
        for key in [key for key, hook in hooks.items() if _is_ours(hook)]:
            del hooks[key]
            for also in _OF_HOOKS:
                own.get(also, {}).pop(key, None)
        for hook in hooks.values():
            if isinstance(hook, Island):
                hook.mark(module)


def _is_ours(hook: Any) -> bool:
    hook = getattr(hook, "hook", hook)  # torch wraps those that are given their module
    owner = getattr(hook, "__self__", hook)
    return type(owner).__module__.startswith(_OURS)
