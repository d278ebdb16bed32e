"""The forms that a model can take, each made by a module of its own."""

from __future__ import annotations

from ..nouns.record import Form
from . import aoti, compiled, eager, exported, onnx, torchscript
from .flat import outputs_of
from .maker import Maker, Run

__all__ = ["Maker", "Run", "maker_of", "outputs_of"]

_MAKERS = {
    Form.AOTI: Maker(aoti.available, aoti.build, aoti.load),
    Form.EXPORT: Maker(exported.available, exported.build, exported.load),
    Form.ONNX: Maker(onnx.available, onnx.build, onnx.load),
    Form.COMPILE: Maker(compiled.available, compiled.build_whole),
    Form.PARTIAL: Maker(compiled.available, compiled.build_partial),
    Form.TORCHSCRIPT: Maker(torchscript.available, torchscript.build, torchscript.load),
    Form.EAGER: Maker(eager.available, eager.build),
}


def maker_of(form: Form, regions: tuple[str, ...] = ()) -> Maker:
    """Return how `form` is made; `regions` are the submodules that Form.REGIONAL compiles."""
    if form is Form.REGIONAL:
        return Maker(compiled.available, compiled.regional(regions))
    return _MAKERS[form]
