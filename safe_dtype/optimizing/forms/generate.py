"""`generate` by a compiled step: torch.compile over a cache of fixed length. It leaves no file.

What was compiled is kept on the disk by inductor, so that another process only captures the step again: 1 graph for
each size of a batch, or 3 where a window slides: of its first step, of all others, and of those once it is full.
"""

from __future__ import annotations

import os

import torch

from ...guarding import guard, report
from ...store import cache_folder
from ..graphs.compiled import missing_for_inductor
from ..graphs.static_steps import compiled_steps, eager_steps, require_generator, static_length
from ..nouns.form import BuildRequest, Form, Run

_NAMED = "TORCHINDUCTOR_CACHE_DIR"  # an environment variable


def build(request: BuildRequest) -> Run:
    """Compile the step of the model, guarded as it will be, and return what answers a batch by it, token by token.

    Raises:
        ValueError: If the model does not generate text from tokens alone.
        Exception: What torch.compile raises, where the step has more than one graph.
    """
    require_generator(request.model, request.inputs)
    keep_compiled()
    # What is compiled has the names of the guard's wrappers in it: compiled without them it would not be found again.
    model = guard(request.model)
    device = str(request.inputs["input_ids"].device)
    steps = compiled_steps(model, static_length(model, request.dynamic), device)

    def run(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        answer = steps(**inputs)
        if events := report(model).events:
            raise RuntimeError(f"the step failed, and its guard went on eagerly: {events[0]}")
        return answer

    # The second token compiles, and the third in windows.
    run(**{name: tensor[:, :4] for name, tensor in request.inputs.items()})
    return run


def keep_compiled() -> None:
    """Have inductor keep what it compiles in the user's cache folder, where nobody has named another one.

    By itself it uses the folder for temporary files, and notes that where the user would name one.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # takes 3 s

    if os.environ.get(_NAMED) in (None, os.path.abspath(default_cache_dir())):  # noqa: PTH100  # as inductor writes it
        os.environ[_NAMED] = str(cache_folder() / "inductor")


FORM = Form(
    name="generate",
    rank=80,
    about="`generate` by a compiled step, over a cache of fixed length",
    build=build,
    missing_to_build=missing_for_inductor,
    only_asked=True,
    serves_generate=True,
    eager=eager_steps,
)
