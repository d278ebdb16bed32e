"""The forms that a model can take. A module of this folder is one form: its constant `FORM`, named as the module is.

Another package adds a form by an entry point of the group `safe_dtype.forms`, which has the form's name and leads to its
`Form`. Child processes find it there as well.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pkgutil import iter_modules

from ...errors import EnvironmentNotFitError
from ..nouns.form import Form

logger = logging.getLogger(__name__)

GROUP = "safe_dtype.forms"


def form_names() -> tuple[str, ...]:
    """Return the name of every form that is installed, our own first. Imports none of them."""
    own = _own()
    return (*own, *(name for name in _others() if name not in own))


def forms() -> tuple[Form, ...]:
    """Return every form that is installed, in the order in which they are tried.

    One of another package that cannot be imported, or that has the name of one of ours, is left out, and the log says why.
    """
    for name in set(_own()) & _others().keys():
        _shadowed(name, _others()[name].value)
    installed = (find_form(name) for name in form_names())
    return tuple(sorted((form for form in installed if form is not None), key=lambda form: form.rank))


def form_named(name: str) -> Form:
    """Return a form.

    Raises:
        ValueError: If none of that name is installed.
        EnvironmentNotFitError: If it is installed, and cannot be imported.
    """
    form = find_form(name)
    if form is not None:
        return form
    if other := _others().get(name):
        raise EnvironmentNotFitError(
            f"the form {name}, for {other.value} cannot be imported, as the log says",
            "mend the package that brings it, or ask for another form",
        )
    raise ValueError(f"There is no form {name!r}; installed are {', '.join(form_names())}.")


def find_form(name: str) -> Form | None:
    """Return a form; None where none of that name is installed, or it cannot be imported."""
    if name in _own():
        own: Form = import_module(f".{name}", __name__).FORM
        return own
    return _loaded(other) if (other := _others().get(name)) else None


def _own() -> tuple[str, ...]:
    return tuple(module.name for module in iter_modules(__path__))


def _others() -> dict[str, EntryPoint]:
    return {one.name: one for one in entry_points(group=GROUP)}


@cache  # said once: forms are looked for often
def _shadowed(name: str, value: str) -> None:
    logger.warning("the form %s of %s is left out: a form of safe_dtype has that name", name, value)


def _loaded(other: EntryPoint) -> Form | None:
    try:
        form = other.load()
    except (Exception, SystemExit) as exc:  # noqa: BLE001  # whatever its code raises, the others are tried
        logger.warning(
            "the form %s of %s cannot be imported: %s: %s", other.name, other.value, type(exc).__name__, exc
        )
        return None
    if not isinstance(form, Form) or form.name != other.name:
        logger.warning("the entry point %s = %s is no Form of that name", other.name, other.value)
        return None
    return form
