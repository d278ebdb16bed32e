"""A T4, V100 or RTX 20 as its owner meets it: what torch claims, what is measured, and models in float16.

python examples/t4.py                # on the accelerator of this machine, else on the CPU
python examples/t4.py plan           # one job
python examples/t4.py --record       # on rehearsal cards, for `docs/t4.md`

The models are the bundled one, and the same with two of its weights moved so that float16 overflows, as it does in many
trained models.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from recording import keep, record, run, say, shell
from ten_jobs import MODEL, overflowing_qwen3
from transformers import AutoModelForCausalLM, AutoTokenizer

import safe_dtype
from safe_dtype import SafeAutoModelForCausalLM, plan_of

DEVICE = str(torch.accelerator.current_accelerator() or "cpu") if torch.accelerator.is_available() else "cpu"


def claims() -> None:
    """Ask torch whether the card supports bfloat16, and time a prompt in it: plain transformers, without safe_dtype."""
    card = torch.get_device_module(DEVICE)
    say(f"{card.get_device_name()}: is_bf16_supported() says {card.is_bf16_supported()}")
    for dtype in ("auto", "float32", "float16"):
        model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=dtype, device_map="auto")
        say(f"dtype={dtype!r}: {model.dtype}, {milliseconds(model):.0f} ms for 256 tokens")


def measured() -> None:
    """Measure the card: half a second to some seconds, once; then it is remembered."""
    shell(f"safe-dtype doctor --device {DEVICE}")


def plan() -> None:
    """Plan a bfloat16 checkpoint for it, before anything is loaded."""
    overflowing_qwen3(Path("overflows"))
    shell("safe-dtype plan overflows")


def overflow() -> None:
    """See what float16 makes of that checkpoint without safe_dtype."""
    model = AutoModelForCausalLM.from_pretrained("overflows", dtype="float16", device_map="auto")
    say(answer(model))
    say(f"finite: {torch.isfinite(model(torch.arange(3, 19, device=DEVICE)[None]).logits).all()}")


def first_load() -> None:
    """Load it for the first time: its activations are measured on a short text, and rescaled exactly."""
    model, seconds = loaded()
    say(f"loaded in {seconds:.1f} s, in {model.dtype} on {model.device.type}")
    say(plan_of(model).explain())
    say(answer(model))
    say(f"{milliseconds(model):.0f} ms for 256 tokens")
    say(f"steps that were repeated: {len(safe_dtype.report(model).events)}")


def second_load() -> None:
    """Load it again, in another process: nothing is measured any more."""
    model, seconds = loaded()
    say(f"loaded in {seconds:.1f} s, in {model.dtype}: {plan_of(model).rescale}")
    say(answer(model))


def script() -> None:
    """Run a program that knows nothing of safe_dtype: as it is, under `safe-dtype run`, and asking for float16."""
    shell("python examples/plain_transformers.py overflows")
    shell("safe-dtype run examples/plain_transformers.py overflows")
    shell("safe-dtype run --policy 'ladder=fp16>fp32' examples/plain_transformers.py overflows")


def v100() -> None:
    """Meet the error of a card whose libraries refuse bfloat16, reported of a V100; then guard that very model."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="auto", device_map="auto")
    try:
        say(answer(model))
    except RuntimeError as error:
        say(f"{type(error).__name__}: {error}")
    say(answer(safe_dtype.guard(model)))
    say(f"now in {model.dtype}; " + "; ".join(str(event) for event in safe_dtype.report(model).events))
    shell(f"safe-dtype plan {MODEL}")


def rtx_20() -> None:
    """Plan for an RTX 2080 Ti."""
    shell(f"safe-dtype plan {MODEL}")


JOBS = (claims, measured, plan, overflow, first_load, second_load, script, v100, rtx_20)
TITLES = {
    "claims": "What torch claims", "measured": "What is measured", "plan": "The plan", "overflow": "float16 without safe_dtype",
    "first_load": "The first load", "second_load": "Later loads", "script": "A program that knows nothing of safe_dtype",
    "v100": "A V100 whose libraries refuse bfloat16", "rtx_20": "An RTX 2080 Ti",
}  # fmt: skip  # of their sections in docs/t4.md
_CARDS = {"v100": "V100", "rtx_20": "RTX 2080 Ti"}  # all others meet a T4


def loaded() -> tuple[transformers.PreTrainedModel, float]:
    """Load the checkpoint that overflows onto the accelerator; return it, and the seconds that it took."""
    if not Path("overflows").exists():
        overflowing_qwen3(Path("overflows"))
    started = time.perf_counter()
    model = SafeAutoModelForCausalLM.from_pretrained("overflows", device_map="auto")
    return model, time.perf_counter() - started


def answer(model: transformers.PreTrainedModel) -> str:
    """Return what a model says after "The argument is"."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    prompt = tokenizer("The argument is", return_tensors="pt").to(model.device)
    return repr(tokenizer.decode(model.generate(**prompt, max_new_tokens=12, do_sample=False)[0]))


def milliseconds(model: transformers.PreTrainedModel) -> float:
    """Return how long a prompt of 256 tokens takes: the fastest of five."""
    prompt = torch.arange(3, 259, device=DEVICE)[None]
    seconds = []
    with torch.no_grad():
        for _ in range(6):
            started = time.perf_counter()
            model(prompt).logits[0, -1].argmax().item()  # waits for the device
            seconds.append(time.perf_counter() - started)
    return 1000 * min(seconds[1:])


def rehearsal(card: str) -> dict[str, str]:
    """Return the environment in which a Python has this card: host memory that behaves like it, made for the tests."""
    tests = Path(__file__).resolve().parent.parent / "tests"
    sys.path.append(str(tests))
    from accelerator.building import PLUGIN, library  # type: ignore[import-not-found]

    return {
        "REHEARSAL_CARDS": card, "REHEARSAL_LIBRARY": str(library()), "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(PLUGIN), os.environ.get("PYTHONPATH")))),
        "OMP_NUM_THREADS": "1",  # on several threads it would be measured how busy this machine is
    }  # fmt: skip


def recorded() -> dict[str, str]:
    """Return what each job prints on its card, each in a process of its own, all in one folder and in their order."""
    printed = {}
    with tempfile.TemporaryDirectory() as folder:
        for job in JOBS:
            card = _CARDS.get(job.__name__, "T4")
            environment = rehearsal(card) | {"SAFE_DTYPE_CACHE": f"{folder}/verdicts of {card}"}
            printed[job.__name__] = record(Path(__file__), job, f"--in={folder}", environment=environment)
    return printed


def main() -> None:
    """Run the jobs that are named, or all of them, or record them for the documents."""
    if sys.argv[1:] == ["--record"]:
        printed = recorded()
        for job in JOBS:
            keep(Path(__file__), job, printed[job.__name__])
        return
    folders = [word.removeprefix("--in=") for word in sys.argv[1:] if word.startswith("--in=")]
    names = [word for word in sys.argv[1:] if not word.startswith("--in=")]
    if folders:
        run(JOBS, names, folders[0])
        return
    with tempfile.TemporaryDirectory() as folder:
        run(JOBS, names, folder)


if __name__ == "__main__":
    main()
