"""Who notices that a rescaled model is changed, and has the rescale follow, or taken back before it would be wrong."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules
from torch.utils._python_dispatch import _disable_current_modes

from ...errors import RescaleError
from ...facts.cache_names import cache_in
from ...models.original_weights import Exponents
from ...models.recast import recast
from ...processes.forked_lock import ForkedLock
from .alone import alone
from .fold import innermost
from .made_from_weights import in_its_own_size
from .own_code import OwnCode
from .rescaled import Rescaled
from .taking_back import take_back
from .underflow import multiplied
from .written import Certificate, Overwritten

# Hooks of these read nothing of the size of what flows, or their results are given back in their own size.
_HARMLESS = ("safe_dtype", "transformers", "peft", "torch.utils")


_FEW = 8  # positions


class _Here(threading.local):
    """How many calls of rescaled models this thread is in, which module was called first, and whom it tells nothing."""

    depth = 0
    first: weakref.ref[nn.Module] | None = None
    quiet: tuple[Watch, ...] = ()


here = _Here()


class Watch:
    """Knows a rescaled model, and is told of its changes: by its modules, by calls, by what reads or writes its weights.

    Whatever the rescale would not survive takes it back, before it happens wherever that can be seen coming.
    """

    def __init__(self, rescaled: Rescaled) -> None:
        self.rescaled = rescaled
        self.is_on = False
        self.code = OwnCode(())  # of the modules inside
        self._changing = ForkedLock()  # taken last, so that who has it waits for nobody
        self._certificate: Certificate | None = None
        self._certified = 0  # after so many changes of the fold
        self._wrapped: tuple[Exponents, bool] | None = None  # of the module that is being wrapped
        # The dtype that was left, and for which: what comes later may be in the first.
        self._turn: tuple[torch.dtype, torch.dtype] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out that modules are watched: a pickled model has plain dicts."""
        return {**self.__dict__, "is_on": False, "_changing": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a lock of its own."""
        self.__dict__.update(state, _changing=ForkedLock())

    @property
    def model(self) -> nn.Module:
        """The model that is rescaled."""
        return self.rescaled.fold.model

    @property
    def is_in_force(self) -> bool:
        """Whether there is anything to watch."""
        return bool(self.rescaled.rescale.shifts) and not any(watch is self for watch in here.quiet)

    def is_copied_in(self, memo: Mapping[int, Any]) -> bool:
        """Whether a deep copy that is under way takes in the whole model."""
        return id(self.model) in memo

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Let the block read weights as they are, in this thread: what others do is seen as ever."""
        before, here.quiet = here.quiet, (*here.quiet, self)
        try:
            yield
        finally:
            here.quiet = before

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Let the block read the rescale with the weights that belong to it: whoever takes it back meanwhile waits."""
        with self._changing, self.quiet():
            yield

    def take_back(self, cause: str, own: frozenset[str] = frozenset(), *, at_once: bool = False) -> None:
        """Take the rescale back, if it is in force; where not `at_once`, when no other thread runs a step."""
        if not self.is_in_force:
            return
        with nullcontext() if at_once else alone(self.model), self._changing:
            if self.is_in_force:  # another thread may have been first
                with self.quiet():
                    self._turn = take_back(self.rescaled, cause, own=own)

    def follow(self) -> None:
        """Follow what was wrapped or unwrapped; take the rescale back where that fails."""
        if not self.is_in_force or not self.rescaled.fold.is_stale():
            return
        with alone(self.model), self.unchanged():
            try:
                self.rescaled.fold.follow()
                return
            except RescaleError as exc:
                problem = exc.problem
        self.take_back(problem)

    # What happens to it

    def module_changes(self, name: str, before: nn.Module | None, after: nn.Module | None) -> None:
        """A module is about to come, to go or to be replaced. What is wrapped or unwrapped is followed afterwards."""
        self._wrapped = None
        if before is not None and after is not None and innermost(before) is innermost(after):
            self._wrapped = self._moved_in(innermost(after))
            return
        how = "added" if before is None else "taken out" if after is None else "replaced"
        self.take_back(f"its module {name!r} is {how}")

    def module_came(self, module: nn.Module | None) -> None:
        """It was put in: it follows into the dtype that the model has gone to, if it has."""
        wrapped, self._wrapped = self._wrapped, None
        if self._turn is None:
            self.follow()
            if module is not None and wrapped is not None:
                in_its_own_size(module, wrapped[0], was_written=wrapped[1])
                self.certify()
        elif module is not None:
            recast(module, {self._turn[0]}, self._turn[1])

    def hook_comes(self, path: str, hook: Callable[..., Any]) -> None:
        """A hook is about to be put on a module whose inputs or outputs are smaller than they would be."""
        if not _is_harmless(hook):
            self.take_back(f"a hook is put on {path}")

    def weights_loaded(self, path: str, prefix: str, state: Mapping[str, Any]) -> None:
        """A state dict is about to be loaded into the module at `path`, where its names begin with `prefix`."""
        if not self.is_in_force:
            return
        inside = f"{path}." if path else ""
        moved = [
            (weight, state[prefix + target.removeprefix(inside)])
            for target, _, _, weight in self.rescaled.fold.moved_weights()
            if target.startswith(inside) and prefix + target.removeprefix(inside) in state
        ]
        # What was taken from its own parameters comes back as it is.
        if not all(weight is value or _is_equal(weight, value) for weight, value in moved):
            self.take_back("a state dict is loaded")

    def called(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """A model in it is called."""
        if here.depth and here.first is not None and here.first() is module:
            here.depth = 0  # torch calls no hook where Ctrl-C has ended the call before
        here.depth += 1
        if here.depth == 1:
            here.first = weakref.ref(module)
        if here.depth > 1 or not self.is_in_force:
            return
        if module.training and torch.is_grad_enabled() and self._is_trained():
            self.take_back("training begins")
        elif _others_watch_every_module():
            self.take_back("hooks of the whole process see its modules")
        elif kwargs.get("inputs_embeds") is not None and self._moves_embedding():
            self.take_back("embeddings are handed to it")
        elif _is_prompt(args, kwargs):
            self.look()

    def returned(self) -> None:
        """A model in it has returned, or raised."""
        here.depth = max(0, here.depth - 1)

    def called_alone(self, path: str) -> None:
        """A module in it is called; harmless inside a call of the model."""
        if not here.depth:
            self.take_back(f"{path} is called by itself")

    def gradient(self, target: str, gradient: Tensor) -> Tensor:
        """Return the gradient of a moved parameter as it is without the rescale, which is taken back after this pass."""
        exponents = self.rescaled.fold.moved().get(target) if self.is_in_force else None
        if exponents is None:
            return gradient
        # In a thread of autograd, for which the one that waits for it may be in a step.
        leave = functools.partial(self.take_back, "gradients are taken", at_once=True)
        torch.autograd.Variable._execution_engine.queue_callback(leave)
        return multiplied(gradient, exponents)

    def look(self) -> None:
        """Look whether anybody has written into moved weights, or put another forward into a module."""
        if (path := self.code.replaced()) is not None:
            self.take_back(f"another forward is put into {path}")
            return
        with _disable_current_modes():  # they may compute in another dtype than weights are stored in
            written = self._written()
        if written is None:
            return
        names = ", ".join(written.names[:3]) + (" and others" if len(written.names) > 3 else "")
        read = "their own size" if written.own else "the size that the rescale gave them"
        self.take_back(f"{names} were written into, and are taken to be of {read}", written.own)

    def _written(self) -> Overwritten | None:
        if self._certificate is None or self._certified != self.rescaled.fold.changes:
            self.certify()
            return None
        written = self._certificate.written()
        if written is None and self._certificate.is_old:
            self.certify()
        return written

    def certify(self) -> None:
        """Take the moved weights as they are for what the rescale has made of them."""
        self._certificate, self._certified = Certificate(self.rescaled.fold), self.rescaled.fold.changes

    def _moved_in(self, module: nn.Module) -> tuple[Exponents, bool] | None:
        """Return how the weight of a module is moved, and whether it was written into since; None where it is not."""
        fold = self.rescaled.fold
        if not self.is_in_force:
            return None
        moved = fold.moved()
        target = next(
            (one for one, holder, name, _ in fold.moved_weights() if holder is module and name == "weight"), None
        )
        if target is None:
            return None
        known = self._certificate if self._certified == fold.changes else None
        return moved[target], known is not None and known.is_written(target)

    def _is_trained(self) -> bool:
        moved = [weight for _, _, _, weight in self.rescaled.fold.moved_weights()]
        # Where only results of modules are moved every weight is the model's own, and float16 holds no small gradients.
        weights = moved or (weight for module in self.code.modules() for weight in module.parameters(recurse=False))
        return any(weight.requires_grad for weight in weights)

    def _moves_embedding(self) -> bool:
        fold = self.rescaled.fold
        return any(
            isinstance(module, nn.Embedding) and fold.reaches(name) for name, module in fold.model.named_modules()
        )


def _is_harmless(hook: Callable[..., Any]) -> bool:
    origin = getattr(hook, "__self__", getattr(hook, "func", hook))
    name = getattr(origin, "__module__", None) or type(origin).__module__
    return name.startswith(tuple(f"{one}." for one in _HARMLESS))


def _others_watch_every_module() -> bool:
    hooks: tuple[Mapping[int, Any], ...] = (
        torch_modules._global_forward_hooks, torch_modules._global_forward_pre_hooks,
    )  # fmt: skip
    return any(hooks) and not all(_is_harmless(hook) for several in hooks for hook in several.values())


def _is_equal(weight: Tensor, value: Any) -> bool:
    return isinstance(value, Tensor) and weight.shape == value.shape and torch.equal(weight, value.to(weight))


def _is_prompt(args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether a sequence begins, or goes on by many positions: then there is time to look at the weights."""
    tokens = args[0] if args else kwargs.get("input_ids")
    if tokens is None:
        tokens = kwargs.get("inputs_embeds")
    if not isinstance(tokens, Tensor) or tokens.dim() < 2 or tokens.shape[1] > _FEW:
        return True
    # Assisted decoding computes a few positions in every step.
    length = getattr(cache_in(kwargs), "get_seq_length", None)
    return tokens.shape[1] > 1 and (length is None or not length())
