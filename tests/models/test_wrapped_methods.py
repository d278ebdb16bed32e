"""Wrapped methods: every wrapper works once, whoever wraps before or after us, and nothing stays behind."""

from __future__ import annotations

import gc
import inspect
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from models.speakers import User, classes, ours, own

from safe_dtype.models.needed import share
from safe_dtype.models.wrapped_methods import owner_of, unwrap_methods, wrap_method


def ours_too(original: Callable[..., Any]) -> Callable[..., Any]:
    """Add `~` to what the method says."""
    return lambda self, *args, **kwargs: original(self, *args, **kwargs) + "~"


class Library:
    """Another library, which wraps `owner.say` without looking left or right."""

    def __init__(self, owner: type) -> None:
        self._owner = owner
        self._before = before = owner.say  # type: ignore[attr-defined]
        self._had = owner.__dict__.get("say")
        self.wrapper = lambda speaker, word: before(speaker, word) + "?"
        owner.say = self.wrapper  # type: ignore[attr-defined]

    def leave(self) -> None:
        """Put back blindly what was there."""
        if self._had is None:
            del self._owner.say  # type: ignore[attr-defined]
        else:
            self._owner.say = self._had  # type: ignore[attr-defined]


@pytest.mark.parametrize("inherits", [False, True])
def test_as_it_was(inherits: bool) -> None:
    """The very objects come back; what was inherited is inherited again, and not set."""
    base, child = classes()
    owner, user = (child if inherits else base), User()
    before = own(base), own(child)
    for name in ("say", "named"):
        wrap_method(owner, name, ours, user)
    assert child().say("a") == "a!"
    assert child.named("a", times=2) == "Childaa!"
    assert child().named("a") == "Childa!"
    assert base().say("a") == ("a" if inherits else "a!")
    unwrap_methods(user)
    assert (own(base), own(child)) == before
    assert isinstance(base.__dict__["named"], classmethod)


@pytest.mark.parametrize("inherits", [False, True])
def test_packed(inherits: bool) -> None:
    """A packed wrapper gets a tuple and a dict, and what it wraps can be bound; a base class wrapped later is heard."""

    def packed(original: Any) -> Callable[..., Any]:
        return lambda self, args, kwargs: f"{original.__get__(self)(*args, **kwargs)}{len(args)}{len(kwargs)}"

    base, child = classes()
    owner, user, other = (child if inherits else base), User(), User()
    before = own(base), own(child)
    wrap_method(owner, "say", packed, user, packed=True)
    assert (child().say("a"), child().say(word="a")) == ("a10", "a01")
    if inherits:
        wrap_method(base, "say", ours, other)
        assert child().say("a") == "a!10"
        unwrap_methods(other)
    unwrap_methods(user)
    assert (own(base), own(child)) == before


def test_as_long_as_somebody_needs_it() -> None:
    """With the last user it goes: one that let go, one that was collected, one in a cycle. Twice is once."""
    base, _ = classes()
    before = own(base)
    first, second, third = User(), User(), User()
    third.itself = third  # type: ignore[attr-defined]
    for user in (first, second, third, first):
        wrap_method(base, "say", ours, user)
    assert base().say("a") == "a!"
    unwrap_methods(first)
    unwrap_methods(first)
    del second
    assert base().say("a") == "a!"
    del third, user
    gc.collect()
    assert own(base) == before


def test_copies_need_it_too() -> None:
    """What is shared with a copy stays for the copy."""
    base, _ = classes()
    before, user, copied = own(base), User(), User()
    wrap_method(base, "say", ours, user)
    share(user, copied)
    share(user, copied)
    unwrap_methods(user)
    assert base().say("a") == "a!"
    unwrap_methods(copied)
    assert own(base) == before


@pytest.mark.parametrize("inherits", [False, True])
@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ("wrap join unwrap leave", "a! a!? a? a"),
        ("wrap join leave unwrap", "a! a!? a! a"),
        ("join wrap unwrap leave", "a? a?! a? a"),
        ("join wrap leave unwrap", "a? a?! a a"),  # it takes ours out with its own
        ("wrap join unwrap wrap unwrap leave", "a! a!? a? a?! a? a"),
        ("wrap join unwrap leave wrap unwrap", "a! a!? a? a a! a"),
        ("join wrap leave wrap unwrap", "a? a?! a a! a"),
        ("wrap join wrap unwrap leave", "a! a!? a?! a? a"),  # ours comes to the top, and works once
        ("wrap join wrap leave wrap unwrap", "a! a!? a?! a! a! a"),  # what it puts back takes over
    ],
)
def test_another_library(steps: str, said: str, inherits: bool) -> None:
    """In every order of wrapping and unwrapping theirs stays as long as they want it, and each works once."""
    base, child = classes()
    owner, user = (child if inherits else base), User()
    before, heard = own(owner), []
    library: Any = None
    for step in steps.split():
        if step == "wrap":
            wrap_method(owner, "say", ours, user)
        elif step == "unwrap":
            unwrap_methods(user)
        elif step == "join":
            library = Library(owner)
        else:
            library.leave()
        heard.append(owner().say("a"))
        if step == "unwrap" and "?" in heard[-1]:
            assert owner.__dict__["say"] is library.wrapper
    assert " ".join(heard) == said
    assert own(owner) == before


def test_libraries_above_and_below() -> None:
    """Between two libraries ours steps aside, and leaves the chain when it comes to the top."""
    base, _ = classes()
    before, user = own(base), User()
    below = Library(base)
    wrap_method(base, "say", ours, user)
    above = Library(base)
    assert base().say("a") == "a?!?"
    unwrap_methods(user)
    assert base().say("a") == "a??"
    above.leave()
    assert base().say("a") == "a?"
    assert base.__dict__["say"] is below.wrapper
    below.leave()
    assert own(base) == before


def test_replaced_by_what_does_not_call_it() -> None:
    """Where somebody put something else in the place of ours, the next that needs it gets it, and so do those before."""
    base, _ = classes()
    first, second = User(), User()
    wrap_method(base, "say", ours, first)
    base.say = theirs = lambda self, word: word + "?"
    wrap_method(base, "say", ours, second)
    unwrap_methods(second)
    assert base().say("a") == "a?!"
    unwrap_methods(first)
    assert base.__dict__["say"] is theirs


def test_base_is_wrapped_meanwhile() -> None:
    """Over an inherited method the wrapper finds what the base class has when it is called."""
    base, child = classes()
    user = User()
    wrap_method(child, "say", ours, user)
    library = Library(base)
    assert child().say("a") == "a?!"
    library.leave()
    assert child().say("a") == "a!"
    unwrap_methods(user)


def test_next_in_line() -> None:
    """Over an inherited method the wrapper calls the next class in the line of the instance, as `super` does."""
    base, child = classes()

    class Mixin(base):  # type: ignore[misc]
        def say(self, word: str) -> str:
            return f"<{super().say(word)}>"

    class Both(child, Mixin):  # type: ignore[misc]
        pass

    user = User()
    wrap_method(child, "say", ours, user)
    assert Both().say("a") == "<a>!"
    assert child().say("a") == "a!"
    unwrap_methods(user)
    assert Both().say("a") == "<a>"


class Told:
    """An object with a `__get__` of its own."""

    def __get__(self, speaker: Any, owner: type) -> Callable[[str], str]:
        return lambda word: word + str(speaker is not None)


@pytest.mark.parametrize(("there", "said"), [(Told(), "aTrue!"), (str.upper, "A!")], ids=["descriptor", "built-in"])
def test_other_objects(there: Any, said: str) -> None:
    """What another library put there need not be a function: it is called as Python calls it."""
    base, _ = classes()
    base.say = there
    user = User()
    wrap_method(base, "say", ours, user)
    assert (base().say("a") if isinstance(there, Told) else base.say("a")) == said
    unwrap_methods(user)
    assert base.__dict__["say"] is there


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_several_wraps(order: tuple[int, ...]) -> None:
    """Two wraps of one method, and one around a subclass's own: each goes by itself, in any order."""
    base, _ = classes()

    class Own(base):  # type: ignore[misc]
        def say(self, word: str) -> str:
            return f"({super().say(word)})"

    before = own(base), own(Own)
    users = [User(), User(), User()]
    marks = ["!", "~", "!"]
    wrap_method(base, "say", ours, users[0])
    wrap_method(base, "say", ours_too, users[1])
    wrap_method(Own, "say", ours, users[2])
    for place in order:
        assert Own().say("a") == "(a" + marks[0] + marks[1] + ")" + marks[2]
        unwrap_methods(users[place])
        marks[place] = ""
    assert (own(base), own(Own)) == before


def test_metadata() -> None:
    """Name, documentation and signature are those of the method, for a class method too; the arguments may be named."""
    base, child = classes()
    plain = {name: inspect.signature(getattr(child, name)) for name in ("say", "named")}
    user = User()
    for name, signature in plain.items():
        wrap_method(child, name, ours, user)
        assert inspect.signature(getattr(child, name)) == signature
        assert getattr(child, name).__name__ == name
        assert getattr(child, name).__doc__ == getattr(base, name).__doc__
    assert child().say(word="a") == "a!"
    assert inspect.signature(child().say) == inspect.signature(base().say)
    unwrap_methods(user)


def test_exceptions() -> None:
    """What the method raises comes through as it is, and the wrapper is there for the next call."""
    base, _ = classes()
    user = User()
    wrap_method(base, "say", ours, user)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'word'"):
        base().say()
    assert base().say("a") == "a!"
    unwrap_methods(user)
    with pytest.raises(AttributeError):
        wrap_method(base, "nothing", ours, user)
    assert "nothing" not in own(base)


def test_owner() -> None:
    """The owner is the nearest class that has the method itself."""
    base, child = classes()
    assert owner_of(child, "say") is base
    assert owner_of(child, "nothing") is None
