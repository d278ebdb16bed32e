"""The model as it is: what every other form is measured against."""

from __future__ import annotations

from ..graphs.flat import outputs_of
from ..nouns.form import BuildRequest, Form, Run


def build(request: BuildRequest) -> Run:
    """Return the model itself; nothing is written."""
    return lambda **inputs: outputs_of(request.model(**inputs))


FORM = Form(name="eager", rank=0, about="as it is: all others are compared with it", build=build)
