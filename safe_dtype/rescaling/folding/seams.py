"""What a watch puts on the modules of a rescaled model, so that it is told of what happens to them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList
from transformers import PreTrainedModel

from ...facts import Part
from ...models.shift_hooks import shift_of
from ...models.undo_log import UndoLog
from ...models.watched_modules import WatchedModules, watch_dicts, watch_no_more
from ...models.wrapped_methods import wrap_method
from .fold import Fold
from .own_code import OwnCode
from .plain_pickle import pickle_as_others, prepare_pickling
from .prove import innermost_models
from .scaled_numbers import scale_back
from .watch import Watch

_NOTE = "_safe_dtype_place"  # in the __dict__ of every module that the rescale reaches
_HOOKS = (
    "register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook",
    "register_full_backward_pre_hook",
)  # fmt: skip
_ADAPTED = "base_model.model."  # how names begin in the state dict of a model of PEFT


def put_on(watch: Watch, log: UndoLog) -> None:
    """Put everything on the modules of the rescaled model; `log` gets what takes it off."""
    model, fold = watch.model, watch.rescaled.fold
    bodies = [name for name, _ in innermost_models(model)]
    targets = list(fold.moved())
    inside: list[tuple[str, nn.Module]] = []
    for path, module in model.named_modules():
        log.add(functools.partial(pickle_as_others, module))
        prepare_pickling(module, model)
        below = f"{path}." if path else ""
        holds = any(target.startswith(below) for target in targets)
        is_body = path in bodies
        is_inside = not is_body and any(path.startswith(f"{name}." if name else "") for name in bodies)
        if not (is_inside or is_body or holds):
            continue
        is_part = is_inside or not any(isinstance(one, PreTrainedModel) for one in module.modules())
        place = Place(watch, path, is_inside=is_part, holds_parts=is_part or is_body)
        log.add(functools.partial(module.__dict__.pop, _NOTE, None))
        module.__dict__[_NOTE] = CopiedAlone(place)
        hooks: list[Any] = []
        if is_inside:
            inside.append((path, module))
        if holds:
            hooks.append(module.register_state_dict_pre_hook(place.state_wanted))
            hooks.append(module.register_load_state_dict_pre_hook(place.state_loaded))
        if is_body or module is model:
            hooks.append(module.register_forward_pre_hook(Entered(watch), with_kwargs=True, prepend=True))
            hooks.append(module.register_forward_hook(Left(watch), always_call=True))
        elif isinstance(module, nn.Embedding) and fold.reaches(path):
            hooks.append(module.register_forward_pre_hook(Alone(place)))
        if module is model:
            hooks.append(model.register_state_dict_post_hook(OfAdapter(watch)))
        for hook in hooks:
            log.add(hook.remove)
    watch.code = OwnCode(inside)
    watch.certify()
    watch_anew(watch, log)


def watch_anew(watch: Watch, log: UndoLog) -> None:
    """Watch what copies and pickles leave behind: the dicts of modules, and gradients; `log` gets the way back."""
    for module in watch.model.modules():
        place = place_of(module)
        if place is not None and place.watch is watch:
            log.add(functools.partial(watch_no_more, module))
            watch_dicts(module, place)
    for target, _, _, weight in watch.rescaled.fold.moved_weights():
        if weight.requires_grad and not weight.is_inference():
            hook = weight.register_hook(functools.partial(watch.gradient, target))  # type: ignore[no-untyped-call]
            log.add(hook.remove)
    for name in _HOOKS:
        wrap_method(nn.Module, name, _telling_of_hooks, watch)
    wrap_method(PreTrainedModel, "resize_token_embeddings", _telling_of_resizing, watch)
    wrap_method(ParametrizationList, "__init__", _telling_of_parametrizing, watch)
    _watches.add(watch)
    watch.is_on = True


def place_of(module: nn.Module) -> Place | None:
    """Return where `module` is in a model whose rescale is in force; None where it is in none."""
    note = module.__dict__.get(_NOTE)
    if not isinstance(note, CopiedAlone) or note.place.watch is None or not note.place.watch.is_in_force:
        return None
    return note.place


class Place:
    """A module of a rescaled model, by its path: what happens there is told to the watch.

    In a copy of a part of the model it tells nobody.
    """

    def __init__(self, watch: Watch | None, path: str, *, is_inside: bool = False, holds_parts: bool = False) -> None:
        self.watch = watch
        self.path = path
        self.is_inside = is_inside  # where the sizes of what flows are not the model's own
        self.holds_parts = holds_parts  # whether what is put into it is inside

    def __deepcopy__(self, memo: dict[int, Any]) -> Place:
        watch = self.watch if self.watch is not None and self.watch.is_copied_in(memo) else None
        copied = Place(None, self.path, is_inside=self.is_inside, holds_parts=self.holds_parts)
        memo[id(self)] = copied
        copied.watch = copy.deepcopy(watch, memo)
        return copied

    def is_copied_in(self, memo: dict[int, Any]) -> bool:
        """Whether a deep copy that is under way takes in the whole model."""
        return self.watch is not None and self.watch.is_copied_in(memo)

    def before_module(self, modules: WatchedModules, name: str, module: nn.Module | None) -> None:
        """A module is about to come, to go, or to be replaced."""
        before = modules.get(name)
        if self.watch is not None and (self.holds_parts or (before is not None and place_of(before) is not None)):
            self.watch.module_changes(name, before, module)

    def after_module(self, module: nn.Module | None, /) -> None:
        """It was put in."""
        if self.watch is not None:
            self.watch.module_came(module)

    def before_parameter(self, name: str) -> None:
        """A parameter is about to go."""
        if self.watch is not None:
            self.watch.take_back(f"its parameter {self.path}.{name} is taken out")

    def state_wanted(self, _module: nn.Module, prefix: str, keep_vars: bool) -> None:  # noqa: FBT001  (torch's call)
        """A state dict is made; with `keep_vars` of the parameters themselves, which is for who exports."""
        if self.watch is not None and not keep_vars and not prefix.startswith(_ADAPTED):
            self.watch.take_back("its state dict is read")

    def state_loaded(self, _module: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
        """A state dict is about to be loaded."""
        if self.watch is not None:
            self.watch.weights_loaded(self.path, prefix, state)


class CopiedAlone:
    """Gives a module that is copied without its model its own size in the copy: weights, numbers and hooks.

    It is the last entry in the module's `__dict__`, so that all else is copied when it is.
    """

    def __init__(self, place: Place) -> None:
        self.place = place

    def __deepcopy__(self, memo: dict[int, Any]) -> CopiedAlone | None:
        watch = self.place.watch
        if watch is None or not watch.is_copied_in(memo):
            if watch is not None and watch.is_in_force:
                _bring_back_in_copy(watch.rescaled.fold, self.place.path, memo)
            return None
        copied = CopiedAlone(copy.deepcopy(self.place, memo))
        memo[id(self)] = copied
        return copied


def _bring_back_in_copy(fold: Fold, path: str, memo: dict[int, Any]) -> None:
    module = fold.model.get_submodule(path)
    copies = {
        target: memo[id(weight)]
        for target, holder, _, weight in fold.moved_weights()
        if holder is module and id(weight) in memo
    }
    for target, own in fold.own(copies) if copies else ():
        copies[target].data = own
    # Of the `__dict__` itself `memo` knows nothing, for it is a copy of it that is being copied: one of the last begun.
    parameters = memo.get(id(module._parameters))
    states = (one for one in reversed(memo.values()) if type(one) is dict and one.get("_parameters") is parameters)
    if any(holder is module for _, holder, _ in fold.moved_numbers()):
        scale_back(next(states, {}))
    shift, by = shift_of(module), fold.shifted(path)
    copied = memo.get(id(shift))
    if copied is not None:
        copied.input_exponent -= by.get(Part.INPUT, 0)
        copied.output_exponent -= by.get(Part.OUTPUT, 0)


class Entered:
    """A forward pre-hook on the model and on the models inside: a call has begun."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Tell it, and watch a copy anew."""
        if torch.compiler.is_compiling():
            return
        watch = self._watch
        if not watch.is_on and watch.is_in_force:
            watch.follow()
            watch_anew(watch, UndoLog.forgetful())
        watch.called(module, args, kwargs)


class Left:
    """A forward hook on the model and on the models inside: a call has ended."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __call__(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        """Tell it."""
        if not torch.compiler.is_compiling():
            self._watch.returned()


class Alone:
    """A forward pre-hook on an embedding: called outside of the model it would give what is not of its own size."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def __call__(self, _module: nn.Module, _args: Any) -> None:
        """Tell it."""
        if not torch.compiler.is_compiling() and self._place.watch is not None:
            self._place.watch.called_alone(self._place.path)


class OfAdapter:
    """A hook on the state dict: that of a model of PEFT has the weights in their own size, in new tensors."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __call__(self, _module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
        """Put them in."""
        if not prefix.startswith(_ADAPTED) or not self._watch.is_in_force:
            return
        names = {name.removeprefix(prefix) for name in state}
        state.update((prefix + target, own) for target, own in self._watch.rescaled.fold.own(names))


def _telling_of_hooks(original: Callable[..., Any]) -> Callable[..., Any]:
    def register(self: nn.Module, hook: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        place = place_of(self)
        if place is not None and place.watch is not None and place.is_inside:
            place.watch.hook_comes(place.path, hook)
        return original(self, hook, *args, **kwargs)

    return register


_watches: WeakSet[Watch] = WeakSet()


def _telling_of_parametrizing(original: Callable[..., Any]) -> Callable[..., Any]:
    def __init__(self: Any, modules: Any, weight: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807  (it is one)
        # What a weight is made of is computed from it here, before it is taken out of its module.
        for watch in list(_watches):
            if watch.is_in_force and any(one is weight for one in watch.model.parameters()):
                watch.take_back("a weight of it is parametrized")
        original(self, modules, weight, *args, **kwargs)

    return __init__


def _telling_of_resizing(original: Callable[..., Any]) -> Callable[..., Any]:
    def resize_token_embeddings(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        place = place_of(self)
        if place is not None and place.watch is not None and any(one is not None for one in (*args, *kwargs.values())):
            place.watch.take_back("its embeddings are resized")
        return original(self, *args, **kwargs)

    return resize_token_embeddings
