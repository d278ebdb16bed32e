"""The public surface is one list."""

from __future__ import annotations

import importlib
import pickle

import pytest
import transformers

import safe_dtype


def test_public_names() -> None:
    """`dir`, `__all__` and what can be imported are the same."""
    assert dir(safe_dtype) == sorted(safe_dtype.__all__)
    for name in safe_dtype.__all__:
        assert getattr(safe_dtype, name) is not None


def test_unknown_name() -> None:
    """A name that does not exist is an AttributeError, as of any module."""
    with pytest.raises(AttributeError, match="has no AutoModelForNothing"):
        safe_dtype.SafeAutoModelForNothing  # noqa: B018
    with pytest.raises(AttributeError, match="nonsense"):
        safe_dtype.nonsense  # noqa: B018


AUTO_CLASSES = [name for name in dir(transformers) if name.startswith("AutoModelFor")]


@pytest.mark.parametrize("name", AUTO_CLASSES)
def test_every_auto_class(name: str) -> None:
    """Every AutoModelForX of the installed transformers has its SafeAutoModelForX, which pickles by name."""
    safe = getattr(safe_dtype, f"Safe{name}")
    assert safe.auto_class is getattr(transformers, name)
    assert pickle.loads(pickle.dumps(safe)) is safe


LISTED = ("safe_dtype", "safe_dtype.errors", "safe_dtype.testing", "safe_dtype.ranks")


@pytest.mark.parametrize("name", LISTED)
def test_public_modules_list_their_names(name: str) -> None:
    """A public module lists what it offers, and offers all of it."""
    module = importlib.import_module(name)
    assert sorted(module.__all__) == sorted(set(module.__all__))
    for public in module.__all__:
        assert hasattr(module, public), public
