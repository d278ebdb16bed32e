"""A model whose layers are spread over ranks, and that generates with injected faults, against plain models switched by hand."""

from __future__ import annotations

import functools
import hashlib
import random
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import transformers as tf
from torch import nn

from safe_dtype import BFLOAT16, FLOAT16, FLOAT32, Policy, SafeAutoModelForCausalLM, report
from safe_dtype.errors import NoDtypeLeft
from safe_dtype.models.casting import cast_cache
from safe_dtype.ranks import restarting

from .faults import CURABLE, LADDER, NUMBERS, InjectedFault, Injection, inject
from .processes import begin_case

PROMPT = torch.arange(1, 9)[None]
NEW_TOKENS = 6
LAYERS = 2
ARMED = 4  # steps in which kernels are watched: the prompt, and three with the shapes of one token
_IN_FORWARD = len(CURABLE) - 1  # the last text is of a backward pass
_DTYPES = {torch.bfloat16, torch.float16, torch.float32}


class Activation(nn.Module):
    """The activation of a layer, from a kernel that a rank may lack."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return what it gives."""
        return torch.ops.safe_dtype_ranks.kernel(nn.functional.silu(values), self.layer)  # type: ignore[no-any-return]


def load(checkpoint: str, dtype: str = "bfloat16", *, is_guarded: bool = False) -> Any:
    """Return this rank's part of the model, with the kernel in every layer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own, of arguments that will be called otherwise
        if is_guarded:
            policy = Policy(ladder=(BFLOAT16, FLOAT16, FLOAT32))
            model: Any = SafeAutoModelForCausalLM.from_pretrained(
                checkpoint, dtype=dtype, policy=policy, tp_plan="auto"
            )
        else:
            model = tf.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, tp_plan="auto").eval()
    for number, layer in enumerate(model.model.layers):
        layer.mlp.act_fn = Activation(number)
    return model


def generate(model: Any) -> Any:
    """Return what the model says to the prompt: tokens, and the logits of each step."""
    tf.set_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.generate(
            PROMPT, max_new_tokens=NEW_TOKENS, do_sample=True, output_logits=True, return_dict_in_generate=True
        )


def step_of(kwargs: Any) -> int:
    """Return which step of a generation a call of the model is, by the length of its cache."""
    past = kwargs["past_key_values"].get_seq_length()
    return 0 if past == 0 else int(past) - PROMPT.shape[1] + 1


def dtypes_due(faults: Sequence[InjectedFault]) -> tuple[str, ...] | None:
    """Return in which dtype each step is made in the end; None where none is left."""
    rung, dtypes = 0, []
    for step in range(NEW_TOKENS):
        while active := [fault for fault in faults if fault.step == step and LADDER[rung] in fault.dtypes]:
            has_raised = any(fault.kind == "exception" for fault in active)
            rung += 1 if has_raised or rung else 2  # what overflows bfloat16 does so in float16
            if rung >= len(LADDER):
                return None
        dtypes.append(LADDER[rung])
    return tuple(dtypes)


def switched(models: dict[str, Any], dtypes: Sequence[str]) -> Any:
    """Return the first of plain models, whose steps are made by the one of the dtype that each is due in."""
    first = models[LADDER[0]]
    own = type(first).forward.__get__(first)

    @functools.wraps(own)
    def forward(*args: Any, **kwargs: Any) -> Any:
        dtype = dtypes[step_of(kwargs)]
        if dtype == LADDER[0]:
            return own(*args, **kwargs)
        cast_cache(kwargs["past_key_values"], _DTYPES - {models[dtype].dtype}, models[dtype].dtype)
        return models[dtype](*args, **kwargs)

    first.forward = forward
    return first


def trial(checkpoint: str, plain: dict[str, Any], faults: Sequence[InjectedFault]) -> tuple[str, list[str], int]:
    """Return a digest of the output, what was not as due, and how often a fault has shown on this rank."""
    model, due, injection, error, output = (
        load(checkpoint, is_guarded=True),
        dtypes_due(faults),
        Injection(faults),
        None,
        None,
    )

    def begins(_: nn.Module, __: Any, kwargs: Any) -> None:
        injection.step = step_of(kwargs)

    model.register_forward_pre_hook(begins, with_kwargs=True)
    inject(injection)
    try:
        output = generate(model)
    except Exception as exc:  # noqa: BLE001  (which one it is, is compared)
        error = exc
    finally:
        inject(None)
    if due is None:
        is_right = isinstance(error, NoDtypeLeft)
        return "", [] if is_right else [f"ended with {error!r}"], injection.fired
    if output is None:
        return "", [f"ended with {error!r}"], injection.fired
    expected = generate(switched(plain, due))
    dtype, steps = str(model.dtype).removeprefix("torch."), {event.step for event in report(model).events}
    checks = {
        f"in {dtype}, not {due[-1]}": dtype == due[-1],
        "tokens": torch.equal(output.sequences, expected.sequences),
        "logits": all(map(_same_numbers, due, output.logits, expected.logits)),
        f"events of steps {steps}": steps <= {fault.step for fault in faults},
    }
    digest = hashlib.sha256(torch.stack(output.logits).float().numpy().tobytes()).hexdigest()[:16]
    return digest, [what for what, is_as_due in checks.items() if not is_as_due], injection.fired


def _same_numbers(dtype: str, logits: torch.Tensor, expected: torch.Tensor) -> bool:
    # A product in float32 adds in an order that depends on how far apart the rows of a weight lie: those of a part that was
    # loaded may be rows of the whole.
    return torch.allclose(logits, expected, rtol=0, atol=1e-4 if dtype == "float32" else 0)


def random_faults(chance: random.Random, size: int) -> list[InjectedFault]:
    """Return one fault or two, of different ranks."""

    def draw(rank: int) -> InjectedFault:
        kind = chance.choices(("exception", *NUMBERS), weights=(4, 1, 1))[0]
        step, layer, raises = chance.randrange(ARMED), chance.randrange(LAYERS), kind == "exception"
        dtypes = chance.choice((LADDER[:1], LADDER[:1], LADDER[:2], *[LADDER] * raises))
        # The number that is spoiled is one of the first token of the prompt: from the last layer nobody asks for it.
        layer = layer if raises or step else 0
        text = chance.randrange(_IN_FORWARD) if raises else 0
        return InjectedFault(rank, step, 0, layer, "forward", kind, text, dtypes)

    return [draw(rank) for rank in chance.sample(range(size), chance.choice((1, 1, 2)))]


def random_trials(checkpoint: str, seed: int, count: int) -> list[tuple[str, str, list[str], int]]:
    """Run cases that are drawn at random, the same on every rank."""
    chance, results = random.Random(seed), []
    begin_case("plain models")
    plain = {dtype: load(checkpoint, dtype) for dtype in LADDER}
    for number in range(count):
        faults = random_faults(chance, dist.get_world_size())
        name = f"tensor parallel {seed}/{number}: {'; '.join(map(str, faults))}"
        begin_case(name)
        results.append((name, *trial(checkpoint, plain, faults)))
    return results


def leaves(checkpoint: str, fault: InjectedFault) -> None:
    """Generate with a fault that no dtype cures, which ends all ranks, each with its own status."""
    begin_case(str(fault), 60)
    model, injection = load(checkpoint, is_guarded=True), Injection([fault])
    injection.step = fault.step
    inject(injection)
    with restarting():
        generate(model)
