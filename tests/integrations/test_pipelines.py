"""Every task of transformers' `pipeline` that runs tiny: bits of a plain pipeline while all is well, rescued where it is not.

Tables want pandas and videos av, which are no dependencies of the tests: they have a lane, `nox -s "tool(pipelines)"`. Absent are
any-to-any and mask-generation, which want torchvision.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image
from pipeline_tasks import SENTENCES, TASKS, words

from safe_dtype import FLOAT32, SafeDtypeWarning, guard, patched, plan_of, report
from safe_dtype.testing import fault

BF16 = torch.bfloat16
QUICK = ("text-classification", "text-generation", "image-classification")
NEEDED = {
    "decision": [pytest.mark.needs("transformers.decision")],  # not in transformers 5.16
    "table-question-answering": [pytest.mark.needs("pandas")],
    "video-classification": [pytest.mark.needs("av")],
}
EACH = [
    pytest.param(name, marks=[*NEEDED.get(name, []), *([] if name in QUICK else [pytest.mark.slow])]) for name in TASKS
]


def asked(task: str, model: Any, **options: Any) -> Any:
    """Return what a pipeline around `model` answers."""
    row = TASKS[task]
    return tf.pipeline(task, model=model, device="cpu", **row.before())(row.inputs(), **row.options, **options)


def numbers_in(answer: Any) -> Iterator[Any]:
    """Yield the leaves of an answer: texts, numbers, and arrays of what it has as tensors and pictures."""
    if isinstance(answer, dict):
        answer = list(answer.values())
    if isinstance(answer, list | tuple):
        for part in answer:
            yield from numbers_in(part)
    elif isinstance(answer, torch.Tensor | Image.Image | np.ndarray):
        yield np.asarray(answer.float() if isinstance(answer, torch.Tensor) else answer, dtype=np.float64)
    else:
        yield answer


def assert_alike(answer: Any, wanted: Any, *, within: float = 0.0) -> None:
    """Compare leaf by leaf: texts are the same, numbers are as near as that."""
    pairs = list(zip(numbers_in(answer), numbers_in(wanted), strict=True))
    assert pairs
    for mine, theirs in pairs:
        if isinstance(theirs, str | None):
            assert mine == theirs
        else:
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=within)


class CalledLast:
    """Hooks that note which module with weights is called last."""

    def __init__(self, model: Any) -> None:
        self.name = ""
        self.handles = [
            part.register_forward_hook(lambda *_, name=name: setattr(self, "name", name))
            for name, part in model.named_modules()
            if isinstance(part, torch.nn.Linear | torch.nn.Conv2d)
        ]

    def remove(self) -> str:
        """Take the hooks out, and return the name."""
        for handle in self.handles:
            handle.remove()
        return self.name


@pytest.mark.parametrize("task", EACH)
def test_task(task: str) -> None:
    """Bits of plain while all is well; with a fault in the last layer, NaN mostly, the answer of float32, inputs rounded or not."""
    row = TASKS[task]
    plain = row.model(row.narrow)
    last = CalledLast(plain)
    wanted = asked(task, plain)
    spoiled = last.remove()
    model = guard(row.model(row.narrow))
    assert_alike(asked(task, model), wanted)
    assert report(model).events == ()
    with fault(model, spoiled, row.kind) as put:
        answer = asked(task, model)
    assert put.fired
    assert {event.after for event in report(model).events} == {FLOAT32}
    # The pipeline rounds pictures and sounds to the dtype that the model was in.
    assert_alike(answer, asked(task, row.model(torch.float32)), within=0.02 * _largest(wanted))


def _largest(answer: Any) -> float:
    return max([1.0, *(float(np.abs(leaf).max()) for leaf in numbers_in(answer) if not isinstance(leaf, str | None))])


@pytest.mark.parametrize("task", [name for name in EACH if TASKS[name.values[0]].many])
def test_batched(task: str) -> None:
    """With `batch_size` and a missing kernel, from a list and from a generator, answers are those of float32."""
    row = TASKS[task]
    last = CalledLast(plain := row.model(row.narrow))
    largest = _largest(asked(task, plain))
    spoiled = last.remove()
    model = guard(row.model(row.narrow))
    before, options = row.before(), row.options | {"batch_size": 2}
    if "tokenizer" in before and before["tokenizer"].pad_token_id is None:
        before["tokenizer"].pad_token = before["tokenizer"].eos_token
    wanted = tf.pipeline(task, model=row.model(torch.float32), device="cpu", **before)(row.inputs(), **options)
    pipe = tf.pipeline(task, model=model, device="cpu", **before)
    with fault(model, spoiled, "not_implemented"):
        answer = pipe(row.inputs(), **options)
        streamed = list(pipe((one for one in row.inputs()), **options))
    assert report(model).events
    assert_alike(answer, wanted, within=0.02 * largest)
    assert_alike(streamed, wanted, within=0.02 * largest)


def test_threads() -> None:
    """Pipelines of several threads around one model, of which the first meets the failure, all get float32's answers."""
    row = TASKS["text-classification"]
    model = guard(row.model(row.narrow))
    wanted = asked("text-classification", row.model(torch.float32))
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(asked("text-classification", model))) for _ in range(4)]
    with fault(model, "classifier", "nan"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(answers) == len(threads)
    for answer in answers:
        assert_alike(answer, wanted)
    assert len(report(model).events) == 1


@pytest.mark.slow
def test_patched_from_a_folder(tmp_path: Path) -> None:
    """A pipeline that loads its model by itself, as users have it, is planned and rescued."""
    row = TASKS["text-classification"]
    row.model(row.narrow).save_pretrained(tmp_path)
    words().save_pretrained(tmp_path)
    wanted = tf.pipeline("text-classification", str(tmp_path), device="cpu", dtype=torch.float32)(SENTENCES)
    with patched(tell="nothing"):
        pipe = tf.pipeline("text-classification", str(tmp_path), device="cpu", dtype=BF16)
    assert plan_of(pipe.model)
    with fault(pipe.model, "classifier", "nan"), pytest.warns(SafeDtypeWarning, match="bfloat16 was asked for"):
        answer = pipe(SENTENCES)
    assert_alike(answer, wanted)
    assert [event.after for event in report(pipe.model).events] == [FLOAT32]
