"""patch, unpatch and patched: what was there comes back, in every order and from every thread."""

from __future__ import annotations

import inspect
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

import safe_dtype
from safe_dtype import FLOAT32, Policy, SafeDtypeWarning, plan_of
from safe_dtype.errors import NoPlanError, PolicyError, StrictModeError

BEFORE = PreTrainedModel.__dict__["from_pretrained"]
Saved = Callable[..., Path]


def is_patched() -> bool:
    """Whether the class holds something else than transformers' own."""
    return PreTrainedModel.__dict__["from_pretrained"] is not BEFORE


def load(folder: Path, **arguments: Any) -> Any:
    """Load as a user of plain transformers does."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **arguments)


def test_the_very_object_comes_back() -> None:
    """`unpatch` puts back the object that was there."""
    safe_dtype.patch()
    assert is_patched()
    safe_dtype.unpatch()
    assert PreTrainedModel.__dict__["from_pretrained"] is BEFORE


def test_patch_twice() -> None:
    """A second patch changes nothing but the policy, and one unpatch undoes both."""
    safe_dtype.patch()
    once, finders = PreTrainedModel.__dict__["from_pretrained"], list(sys.meta_path)
    safe_dtype.patch("prefer=memory")
    assert PreTrainedModel.__dict__["from_pretrained"] is once
    assert sys.meta_path == finders
    safe_dtype.unpatch()
    assert not is_patched()
    safe_dtype.unpatch()
    assert not is_patched()


def test_block_ends_with_an_error() -> None:
    """`patched()` undoes itself when the block raises."""

    @safe_dtype.patched()
    def fail() -> None:
        assert is_patched()
        raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not is_patched()


def test_nesting(saved: Saved) -> None:
    """Inside, the inner policy holds; outside again, the outer one; and unpatch leaves an open block alone."""
    safe_dtype.patch("prefer=memory")
    with safe_dtype.patched("prefer=fidelity"):
        assert plan_of(load(saved())).policy == Policy(prefer="fidelity")
        with safe_dtype.patched():
            assert plan_of(load(saved())).policy == Policy()
        safe_dtype.unpatch()
        assert plan_of(load(saved())).policy == Policy(prefer="fidelity")
    assert not is_patched()


def test_as_a_decorator(saved: Saved) -> None:
    """`patched()` decorates a function, for every one of its calls."""
    decorated = safe_dtype.patched("prefer=fidelity")(load)
    for _ in range(2):
        assert plan_of(decorated(saved())).storage == FLOAT32
    with pytest.raises(NoPlanError):
        plan_of(load(saved()))


def test_bad_policy() -> None:
    """A policy that cannot be read is an error at once, and patches nothing."""
    with pytest.raises(PolicyError):
        safe_dtype.patch("quickly")
    with pytest.raises(PolicyError), safe_dtype.patched("quickly"):
        pass
    assert not is_patched()


def test_signature_and_doc() -> None:
    """The patched method shows transformers' own signature and documentation."""
    plain, doc = inspect.signature(PreTrainedModel.from_pretrained), PreTrainedModel.from_pretrained.__doc__
    with safe_dtype.patched():
        assert inspect.signature(PreTrainedModel.from_pretrained) == plain
        assert PreTrainedModel.from_pretrained.__doc__ == doc


def test_order_is_obeyed(saved: Saved) -> None:
    """A dtype that the caller passes is loaded, with a warning at the caller's line where it is slow here."""
    with warnings.catch_warnings(record=True) as caught, safe_dtype.patched():
        warnings.simplefilter("always")
        assert load(saved(), dtype=torch.bfloat16).dtype == torch.bfloat16
    for one in caught:
        assert issubclass(one.category, SafeDtypeWarning)
        assert one.filename == __file__


def test_strict(saved: Saved) -> None:
    """In strict mode the plan's error is raised; in auto mode what cannot be planned is transformers' own affair."""
    with safe_dtype.patched("strict"), pytest.raises(StrictModeError):
        load(saved(), dtype=torch.int8)
    with pytest.raises(Exception) as theirs:  # noqa: PT011  (whatever it is, it is compared)
        load(saved(), dtype=torch.int8)
    with safe_dtype.patched(), pytest.raises(type(theirs.value)):
        load(saved(), dtype=torch.int8)


def test_wrapped_by_somebody_else(saved: Saved) -> None:
    """Who wrapped ours keeps their wrapper; beneath it ours does nothing any more, and can be put in again."""
    safe_dtype.patch()
    ours = PreTrainedModel.__dict__["from_pretrained"]
    calls = []

    def theirs(cls: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(cls)
        return ours.__get__(None, cls)(*args, **kwargs)

    wrapper = classmethod(theirs)
    PreTrainedModel.from_pretrained = wrapper
    try:
        safe_dtype.unpatch()
        assert PreTrainedModel.__dict__["from_pretrained"] is wrapper
        with pytest.raises(NoPlanError):
            plan_of(load(saved()))
        with safe_dtype.patched():
            assert plan_of(load(saved()))
        assert PreTrainedModel.__dict__["from_pretrained"] is wrapper
        assert len(calls) == 2
    finally:
        PreTrainedModel.from_pretrained = BEFORE


def test_wrapped_inside_a_block(saved: Saved) -> None:
    """A library that wraps under `patch()` and `patched()` keeps its wrapper through both; every load is planned once."""
    safe_dtype.patch("prefer=memory")
    with safe_dtype.patched("prefer=fidelity"):
        ours = PreTrainedModel.__dict__["from_pretrained"]
        wrapper = classmethod(lambda cls, *args, **kwargs: ours.__get__(None, cls)(*args, **kwargs))
        PreTrainedModel.from_pretrained = wrapper
        try:
            with safe_dtype.patched():
                assert plan_of(load(saved())).policy == Policy()
            assert plan_of(load(saved())).policy == Policy(prefer="fidelity")
            safe_dtype.unpatch()
            assert plan_of(load(saved())).policy == Policy(prefer="fidelity")
        finally:
            safe_dtype.unpatch()
    assert PreTrainedModel.__dict__["from_pretrained"] is wrapper
    PreTrainedModel.from_pretrained = ours  # as a library does that puts back what it found
    with pytest.raises(NoPlanError):
        plan_of(load(saved()))
    assert not is_patched()


def test_no_class_method(caplog: pytest.LogCaptureFixture) -> None:
    """Where somebody put something that is no class method nothing is patched, and that is said."""
    PreTrainedModel.from_pretrained = theirs = lambda *_, **__: None
    try:
        with safe_dtype.patched():
            assert PreTrainedModel.__dict__["from_pretrained"] is theirs
        assert "nothing is patched" in caplog.text
    finally:
        PreTrainedModel.from_pretrained = BEFORE


def test_threads(saved: Saved) -> None:
    """Threads that patch, unpatch and load at the same time end with everything as it was, and every load works."""
    folder, start = saved(), threading.Barrier(4)

    def turn_on_and_off(_: int) -> int:
        start.wait()
        for _ in range(30):
            safe_dtype.patch()
            with safe_dtype.patched("prefer=memory"):
                pass
            safe_dtype.unpatch()
        return 0

    def load_some(_: int) -> int:
        start.wait()
        with safe_dtype.patched("prefer=memory"):
            return sum(plan_of(load(folder)).policy.prefer in ("memory", "speed") for _ in range(5))

    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(work, 0) for work in (turn_on_and_off, load_some) * 2]
        assert [one.result() for one in found] == [0, 5, 0, 5]
    assert not is_patched()


def test_the_process_group_is_wrapped_and_put_back() -> None:
    """Where ranks connect they tell of their devices, for as long as the process is patched; then torch is what it was."""
    before = torch.distributed.init_process_group
    with safe_dtype.patched():
        assert torch.distributed.init_process_group is not before
    assert torch.distributed.init_process_group is before
