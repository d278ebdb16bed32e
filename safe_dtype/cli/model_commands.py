"""The commands that plan, load and measure models."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import NoSuchDeviceError
from ..facts import DEFAULT_MAX_DRIFT
from ..planning import Plan, Policy
from .completion import complete_dtype, complete_path
from .options import (
    DEVICE,
    FORMAT,
    HTML,
    MODEL,
    REVISION,
    FiniteLimit,
    columns,
    ignored_revision,
    is_text,
    warn_of_ignored,
    write_picture,
)
from .progress_line import bar, progress
from .whole_texts import explained, text_of

if TYPE_CHECKING:
    from ..commands.generate_text import Generator
    from ..patching.telling import Telling

_OF_ONE_ANSWER, _IN_A_CHAT = 64, 512  # new tokens, where nobody says how many

_POLICY = click.option(
    "--policy", default="auto", show_default=True, metavar="TEXT",
    help="What you want, in words with commas between: auto, or strict (change nothing); prefer=speed|memory|fidelity; "
    "prompt=N, new=N (tokens to plan for); ladder=bf16>fp32 (only these dtypes, in this order); int8, int4 (8- or 4-bit weights); "
    "islands (a module that fails goes to float32 alone); max_drift=X (of rounded weights, in nats); "
    "variants=say|use|ignore, recipes=ignore|use|ORG/NAME (what others published); save=as-saved|as-is.",
)  # fmt: skip
_OF_A_PLAN = (
    MODEL,
    DEVICE,
    _POLICY,
    click.option(
        "--dtype",
        metavar="DTYPE",
        shell_complete=complete_dtype,
        help="Load in this dtype, whatever the plan would choose; a warning says where it is slow or wrong.",
    ),
    REVISION,
)
_GGUF_FILE = click.option(
    "--gguf-file", metavar="FILE", help="Which GGUF file of a folder or repository; MODEL may be one itself."
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """What a plan is asked for on the command line."""

    model: str
    device: str | None
    policy: Policy
    dtype: str | None
    revision: str | None
    gguf_file: str | None = None

    @property
    def arguments(self) -> dict[str, str | None]:
        """The arguments of `from_pretrained` that are asked for, beside the device."""
        return {"dtype": self.dtype, "revision": self.revision, "gguf_file": self.gguf_file}


def _asks_for_a_plan(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` the arguments of a plan, handed over as one `Asked`."""

    @wraps(command)
    def with_asked(*, model: str, policy: str, **options: Any) -> None:
        names = ("device", "dtype", "revision")
        asked = Asked(model=model, policy=Policy.parse(policy), **{name: options.pop(name) for name in names})
        command(asked, **options)

    for parameter in reversed(_OF_A_PLAN):
        with_asked = parameter(with_asked)
    return with_asked


def _list_devices(context: click.Context, _option: click.Parameter, asked: bool) -> None:  # noqa: FBT001  (click's own call)
    if asked and not context.resilient_parsing:
        from ..commands.list_devices import list_devices

        click.echo(list_devices(width=columns()))
        context.exit()


@click.command()
@_asks_for_a_plan
@click.option(
    "--list-devices", is_flag=True, is_eager=True, expose_value=False, callback=_list_devices,
    help="List the devices that are known without being here, and exit.",
)  # fmt: skip
@_GGUF_FILE
@HTML
@FORMAT
def plan(asked: Asked, *, page: Path | None, form: str, gguf_file: str | None) -> None:
    """Show in which dtype MODEL would be loaded here, and why in no other.

    Reads headers and configs, never weights. --device also takes the name of a device that is not here, such as
    "NVIDIA Tesla T4" or "Apple M2 24 GB": the plan then rests on published facts, and says so.
    """
    asked = replace(asked, gguf_file=gguf_file)
    here = asked.device is None or _is_here(asked.device)
    made = _with_foreseen(_plan_here(asked) if here else _plan_by_priors(asked), asked)
    if page:
        from ..commands.plan_page import plan_page_with_device

        elsewhere = None if here else asked.device
        write_picture(page, plan_page_with_device(made, asked.model, revision=asked.revision, elsewhere=elsewhere))
    click.echo(made.to_json(indent=2) if form == "json" else made.explain(width=columns()))


@click.command()
@_asks_for_a_plan
@click.argument("prompt", required=False, callback=is_text)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    help="When to stop an answer.  [default: 64, or 512 of each answer of a chat in turns]",
)
@click.option(
    "--chat",
    is_flag=True,
    help="Send PROMPT as a user's message, through the model's chat template. Without PROMPT: talk in turns.",
)
@FORMAT
def generate(asked: Asked, *, prompt: str | None, max_new_tokens: int | None, chat: bool, form: str) -> None:
    """Continue PROMPT with MODEL, token by token; then say in which dtype, why, and how fast.

    Only the answer goes to stdout; on a terminal PROMPT stands before it. With --chat and without PROMPT every line of
    stdin is a turn of one conversation: Ctrl-C stops an answer, Ctrl-D ends the chat.
    """
    if prompt is None and not chat:
        raise click.UsageError("Missing argument 'PROMPT'. Only --chat talks without one, in turns.")
    warn_of_ignored(asked.model, asked.revision)
    made = _plan_here(asked)
    from ..commands.generate_text import Generator

    with progress(f"loading {asked.model} in {made.storage}"), explained(asked.model, asked.revision):
        generator = Generator.load(asked.model, made, revision=asked.revision)
    as_text = form == "text"
    if prompt is None:
        _talk(generator, max_new_tokens or _IN_A_CHAT, as_text=as_text)
        return
    answer = generator.answer(
        prompt,
        max_new_tokens=max_new_tokens or _OF_ONE_ANSWER,
        chat=chat,
        stream=sys.stdout if as_text else None,
        echo=sys.stdout is not None and sys.stdout.isatty(),
    )
    if as_text:
        click.echo(answer.closing_line(generator.plan), err=True)
    else:
        click.echo(json.dumps({"schema": 1, **answer.to_dict(), "plan": generator.plan.to_dict()}, indent=2))


@click.command()
@MODEL
@DEVICE
@click.option(
    "--dtype",
    metavar="DTYPE",
    shell_complete=complete_dtype,
    help="The dtype to verify.  [default: what `plan` chooses here, as it is loaded]",
)
@click.option("--against", metavar="DTYPE", default="float32", show_default=True, help="The dtype to compare it with.")
@click.option(
    "--text",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A text to run, in UTF-8.  [default: one of ours]",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=2),
    default=512,
    show_default=True,
    help="How many of the text, in batches of 128.",
)
@click.option(
    "--max-drift",
    type=FiniteLimit(),
    default=DEFAULT_MAX_DRIFT,
    show_default=True,
    help="How far from --against is accepted: nats of mean KL for logits of tokens or classes; 1 - mIoU for pixels; relative RMS for anything else.",
)
@REVISION
@_GGUF_FILE
@FORMAT
def verify(*, model: str, text: Path | None, max_drift: float, form: str, **options: Any) -> None:
    """Measure how far MODEL in one dtype drifts from MODEL in another.

    Loads both, one after the other, as plain transformers does; without --dtype the second as planned. Exits with
    status 0 within the limit, 3 beyond it.
    """
    from ..commands.verify import Question, verify

    words = text_of(text) if text else None
    warn_of_ignored(model, options["revision"])
    with bar(f"verifying {model}") as tell, explained(model, options["revision"], options["gguf_file"]):
        verification = verify(Question(model, text=words, max_drift=max_drift, **options), tell)
    click.echo(
        json.dumps({"schema": 1, **verification.to_dict()}, indent=2) if form == "json" else verification.as_text()
    )
    if verification.beyond:
        click.get_current_context().exit(3)


def _not_of_run(_context: click.Context, _option: click.Parameter, asked: str | None) -> None:
    """Say how a program's models are told what `plan` and `generate` are told by an option."""
    if asked is not None:
        raise click.UsageError(
            "No --dtype and no --device: SCRIPT chooses its devices, and each model's plan its dtype. "
            "--policy ladder=fp16>fp32 tries these dtypes in this order, --policy prefer=memory takes the smallest, "
            "and a dtype= in SCRIPT is obeyed."
        )


@click.command(context_settings={"allow_interspersed_args": False})
@_POLICY
@click.option("-m", "as_module", is_flag=True, help="SCRIPT is a module, as in `python -m`.")
@click.option("--explain", "tell", flag_value="all", help="Print the whole plan of each model, in place of one line.")
@click.option("--quiet", "-q", "tell", flag_value="nothing", help="Print nothing of what is chosen; warnings stay.")
@click.option("--dtype", "--device", hidden=True, expose_value=False, callback=_not_of_run, metavar="TEXT")
@click.argument("script", shell_complete=complete_path)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, shell_complete=complete_path)
def run(*, policy: str, as_module: bool, tell: Telling | None, script: str, arguments: tuple[str, ...]) -> None:
    """Run the Python program SCRIPT as it is, with every model that it loads planned and guarded.

    The steps of a Trainer are guarded, too. For each model one line on stderr says which dtype was chosen and why.
    What SCRIPT prints stays as it is.

    What comes after SCRIPT on the line is handed to it. The processes that it starts are covered as well. Launchers that take a module
    take this one: `accelerate launch -m safe_dtype.run train.py`, `torchrun -m safe_dtype.run train.py`.
    """
    from ..patching.script import become_python

    become_python([*(["-m"] if as_module else []), script, *arguments], Policy.parse(policy), tell or "line")


def _talk(generator: Generator, max_new_tokens: int, *, as_text: bool) -> None:
    from ..commands.chat import Chat
    from .talk import talk

    chat, plan = Chat(generator, max_new_tokens=max_new_tokens), generator.plan
    if as_text:
        click.echo(f"[{plan.what} on {plan.where}: {plan.reason}]", err=True)
    answers = talk(chat, streams=as_text)
    if not as_text:
        turns = [answer.to_dict() for answer in answers]
        click.echo(
            json.dumps({"schema": 1, "turns": turns, "messages": chat.messages, "plan": plan.to_dict()}, indent=2)
        )


def _is_here(device: str) -> bool:
    """Whether the device is on this machine; what only a machine can have, as "cuda:0", has to be.

    Raises:
        NoSuchDeviceError: If it is torch's name of a device, and that is not here.
    """
    from ..devices import detect_one
    from ..devices.products import is_a_place

    try:
        detect_one(device)
    except NoSuchDeviceError:
        if is_a_place(device):
            raise
        return False
    return True


def _plan_here(asked: Asked) -> Plan:
    with progress(f"measuring {asked.device or 'this machine'} for {asked.model}"):
        from ..loading import Request, plan_request

        arguments = {**asked.arguments, "device_map": asked.device}
        return plan_request(Request(asked.model, arguments), asked.policy)


def _plan_by_priors(asked: Asked) -> Plan:
    from ..devices import prior_facts

    device = prior_facts(str(asked.device))
    with progress(f"planning {asked.model} for {device.name}"):
        from ..loading import Request, plan_request

        return plan_request(Request(asked.model, asked.arguments), asked.policy, device=device)


def _with_foreseen(made: Plan, asked: Asked) -> Plan:
    """Return the plan with warnings of what loading will fail at, and of what it ignores."""
    from ..loading import Request, foreseen_in_all

    request = Request(asked.model, {"revision": asked.revision, "gguf_file": asked.gguf_file})
    warnings = [failure.warning for failure in foreseen_in_all(request)]
    if ignored := ignored_revision(asked.model, asked.revision):
        warnings.append(ignored)
    return replace(made, warnings=(*made.warnings, *warnings))
