"""By which name models of transformers take their cache and give it back: of all that we read, only this file knows it.

Until 5.23 most architectures say `past_key_values`, and those with the states of a Mamba `cache_params`; from 5.24 on all say
`cache`, and take the old names with a warning. Remote code keeps what it was written with. So it is never asked which version
is installed, but what a function has for a name, or under which of them a cache is found.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

# A function of before 5.24 may have a `cache` of another kind beside its `past_key_values`, so that name comes last.
CACHE_NAMES = ("past_key_values", "cache_params", "cache")


def cache_parameter(function: Callable[..., Any]) -> str:
    """Return the name of the parameter by which a function takes the cache of a model.

    Args:
        function: A forward, or what prepares its arguments. One that names no cache is told it by the oldest name.
    """
    known = inspect.signature(function).parameters
    return next((name for name in CACHE_NAMES if name in known), CACHE_NAMES[0])


def cache_in(arguments: Mapping[str, Any]) -> Any:
    """Return the cache among the arguments of a call by name; None where there is none."""
    return next((arguments[name] for name in CACHE_NAMES if arguments.get(name) is not None), None)


def cache_of(output: Any) -> Any:
    """Return the cache in what a model or its `generate` has returned; None where there is none."""
    # Its attributes as they are: asked for an older name, an output of 5.24 warns, and answers by the newer one.
    return cache_in(getattr(output, "__dict__", {}))
