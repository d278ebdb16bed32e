"""Evaluations and predictions of a training run that fail in their dtype: the pass goes on, the training never knows."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tiny_models import TINY
from torch import nn
from transformers import Trainer, TrainingArguments

from safe_dtype import PrecisionGuard, TorchLoop, guard, patched, report
from safe_dtype.errors import StrictModeError
from safe_dtype.facts import BFLOAT16, FLOAT16
from safe_dtype.guarding.state import guard_of
from safe_dtype.planning import Policy
from safe_dtype.testing import fault
from safe_dtype.training.evaluation import evaluating, guard_evaluation, keep_weights

PLACE = "model.layers.1.mlp.act_fn"  # has no weights: it fails by the dtype of its input
ROWS = [{"input_ids": torch.arange(3, 10) + row, "labels": torch.arange(3, 10) + row} for row in range(8)]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


class Failing(Trainer):  # type: ignore[misc]
    """A Trainer in whose evaluations a layer fails in bfloat16, by `kind`; empty: none does."""

    kind = ""

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Run the loop of the class above with the fault in the model."""
        with fault(self.model, PLACE, self.kind, dtype=BFLOAT16) if self.kind else nullcontext():
            return super().evaluation_loop(*args, **kwargs)


def trainer(folder: Path, weights: torch.dtype, kind: str = "", *, bf16: bool = True) -> Any:
    """Make a Trainer of a tiny model: four steps, an evaluation after every second one."""
    torch.manual_seed(0)
    model = TINY["qwen3"].make().to(weights)
    args = TrainingArguments(
        str(folder), bf16=bf16, use_cpu=True, max_steps=4, eval_strategy="steps", eval_steps=2, save_strategy="no",
        per_device_train_batch_size=2, logging_steps=1, report_to=[], disable_tqdm=True,
    )  # fmt: skip
    made = Failing(model=model, args=args, train_dataset=ROWS, eval_dataset=ROWS[:4])
    made.kind = kind
    return made


def losses(run: Any, name: str) -> list[float]:
    """Return what a run has logged by this name."""
    return [entry[name] for entry in run.state.log_history if name in entry]


SETTINGS = {
    "autocast": (torch.float32, True),
    "bfloat16-weights": (torch.bfloat16, False),
    "bfloat16-weights-and-autocast": (torch.bfloat16, True),
}
QUICK = (("autocast", "nan"), ("bfloat16-weights", "not_implemented"))


@pytest.mark.parametrize(
    ("setting", "kind"),
    [
        pytest.param(setting, kind, marks=() if (setting, kind) in QUICK else pytest.mark.slow)
        for setting in SETTINGS
        for kind in ("nan", "not_implemented")
    ],
)
def test_the_pass_goes_on_and_training_is_the_same(
    setting: str, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every evaluation has its loss; weights, moments and losses of training are, bit for bit, those of a run without."""
    weights, bf16 = SETTINGS[setting]
    plain = trainer(tmp_path, weights, bf16=bf16)
    plain.train()
    AcceleratorState._reset_state(True)
    run = trainer(tmp_path, weights, kind, bf16=bf16)
    guard_evaluation(run)
    with caplog.at_level(logging.WARNING, "safe_dtype"):
        run.train()
    assert report(run.model).events
    assert losses(run, "eval_loss") == pytest.approx(losses(plain, "eval_loss"), abs=2e-3)
    assert losses(run, "loss") == losses(plain, "loss")
    assert run.model.dtype == weights
    for mine, right in zip(run.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(mine, right)
        moments = [one.optimizer.optimizer.state[weight] for one, weight in ((run, mine), (plain, right))]
        assert torch.equal(moments[0]["exp_avg"], moments[1]["exp_avg"])
        assert moments[0]["exp_avg"].dtype == weights


class LogNdtr(nn.Linear):
    """A layer in float32 whose last operation has no kernel in 16 bits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply, in the dtype of the autocast where one is on, and compute in what comes of it."""
        return torch.special.log_ndtr(super().forward(x)).exp()


def test_parts_in_float32(tmp_path: Path) -> None:
    """A base in bfloat16 that needs an autocast for its parts in float32 is run, in float32, without it."""
    run = trainer(tmp_path, torch.bfloat16)
    down = run.model.model.layers[1].mlp.down_proj
    run.model.model.layers[1].mlp.down_proj = LogNdtr(down.in_features, down.out_features)
    before = {name: weight.clone() for name, weight in run.model.state_dict().items()}
    batch = {name: torch.stack([row[name] for row in ROWS[:4]]) for name in ROWS[0]}
    wanted = copy.deepcopy(run.model).eval().float()(**batch).loss.item()
    guard_evaluation(run)
    assert run.evaluate()["eval_loss"] == pytest.approx(wanted, rel=1e-2)
    (event,) = report(run.model).events
    assert event.remedy == "a copy of the weights in float32"
    assert event.autocast == "torch.autocast(dtype=bfloat16)"
    for name, weight in run.model.state_dict().items():
        assert torch.equal(weight, before[name])
        assert weight.dtype is before[name].dtype


class OwnAutocast(LogNdtr):
    """The same, under an autocast that the layer opens by itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply in bfloat16."""
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x).to(x.dtype)


def test_an_autocast_that_the_model_opens(tmp_path: Path) -> None:
    """It is turned off in the passes that fail with it, which come out as without it."""
    run = trainer(tmp_path, torch.float32, bf16=False)
    layer = run.model.model.layers[1].mlp
    layer.down_proj = LogNdtr(layer.down_proj.in_features, layer.down_proj.out_features)
    wanted = run.evaluate()["eval_loss"]
    layer.down_proj.__class__ = OwnAutocast
    guard_evaluation(run)
    assert run.evaluate()["eval_loss"] == wanted
    (event,) = report(run.model).events
    assert event.remedy == "the model's own torch.autocast(dtype=bfloat16) turned off"


def test_predictions(tmp_path: Path) -> None:
    """`predict` is guarded as well, and its logits are near those of a model without a fault."""
    plain, run = trainer(tmp_path, torch.bfloat16, bf16=False), trainer(tmp_path, torch.bfloat16, "nan", bf16=False)
    guard_evaluation(run)
    wanted, got = (one.predict(ROWS[:4]).predictions for one in (plain, run))
    assert got.dtype == wanted.dtype
    assert abs(got - wanted).max() < 2e-2


def test_numbers_that_are_the_models_own(tmp_path: Path) -> None:
    """A model that has diverged has a loss of NaN, as without us: nothing is raised, and nothing stays behind."""
    run = trainer(tmp_path, torch.bfloat16, bf16=False)
    with torch.no_grad():
        run.model.model.norm.weight.fill_(torch.nan)
    guard_evaluation(run)
    assert run.evaluate()["eval_loss"] != run.evaluate()["eval_loss"]
    assert run.model.dtype == torch.bfloat16
    assert guard_of(run.model).copy is None  # type: ignore[union-attr]


def test_a_failure_of_another_kind_comes_through(tmp_path: Path) -> None:
    """What no dtype cures is raised as it is, with the model as it was."""
    run = trainer(tmp_path, torch.bfloat16, "out_of_memory", bf16=False)
    guard_evaluation(run)
    with pytest.raises(RuntimeError, match="out of memory"):
        run.evaluate()
    assert run.model.dtype == torch.bfloat16


def test_under_patch(tmp_path: Path) -> None:
    """A program that is only patched gets the same, for any Trainer; in strict mode nothing is guarded for it."""
    with patched("strict", tell="nothing"), pytest.raises(RuntimeError, match="not implemented"):
        trainer(tmp_path, torch.bfloat16, "not_implemented", bf16=False).evaluate()
    with patched(tell="nothing"):
        run = trainer(tmp_path, torch.bfloat16, "not_implemented", bf16=False)
        assert run.evaluate()["eval_loss"] > 0
    assert [event.remedy for event in report(run.model).events] == ["a copy of the weights in float32"]


def test_a_strict_guard_refuses(tmp_path: Path) -> None:
    """A model that its owner has guarded in strict mode raises the error of that."""
    run = trainer(tmp_path, torch.bfloat16, "not_implemented", bf16=False)
    guard(run.model, policy="strict")
    guard_evaluation(run)
    with pytest.raises(StrictModeError):
        run.evaluate()


def test_plain_accelerate() -> None:
    """A loop of one's own keeps its weights too, and its copy follows what is trained between two evaluations."""
    torch.manual_seed(0)
    model = guard(TINY["qwen3"].make().to(torch.bfloat16))
    ids = ROWS[0]["input_ids"][None]
    with patched(tell="nothing"):
        accelerator = Accelerator(cpu=True)
        model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 1.0))
    seen = []
    for _ in range(2):
        with fault(model, PLACE, "not_implemented", dtype=BFLOAT16), torch.no_grad():
            seen.append(model.eval()(input_ids=ids).logits)
            wide = TINY["qwen3"].make().to(torch.bfloat16).float()
            wide.load_state_dict(model.state_dict())
            assert torch.equal(seen[-1], wide.eval()(input_ids=ids).logits.bfloat16())
        accelerator.backward(model.train()(input_ids=ids, labels=ids).loss)
        optimizer.step()
        optimizer.zero_grad()
    assert model.dtype == torch.bfloat16
    assert not torch.equal(*seen)


def test_what_helped_is_taken_back() -> None:
    """At the end of a block everything is as before: the copy, how attention is computed, what the guard knew."""
    model = guard(TINY["qwen3"].make().to(torch.bfloat16).eval())
    state = guard_of(model)
    assert state is not None
    with evaluating(model), fault(model, PLACE, "not_implemented", dtype=BFLOAT16):
        assert model(**TINY["qwen3"].inputs()).logits.dtype == torch.bfloat16
        assert state.copy is not None
    assert (state.copy, state.weights_stay, state.logs, state.left) == (None, False, None, set())
    assert len(report(model).events) == 1
    assert isinstance(model.lm_head.weight, nn.Parameter)


def test_who_keeps_weights() -> None:
    """Only guards that are there are told, and in strict mode none is put on."""
    model = TINY["qwen3"].make()
    keep_weights(model)
    with evaluating(model, Policy(mode="strict")):
        assert guard_of(model) is None
    guard(model)
    keep_weights(model)
    assert guard_of(model).weights_stay  # type: ignore[union-attr]


@pytest.mark.parametrize("trains", [False, True], ids=["eval", "train"])
def test_a_loop_of_a_guarded_model(trains: bool) -> None:
    """What fails in a window is the window's, on all ranks, in whatever mode the model was left; between windows it is guarded."""
    model = guard(TINY["qwen3"].make()).train(trains)
    loop = TorchLoop(model, torch.optim.SGD(model.parameters(), lr=0.01), BFLOAT16)
    training = PrecisionGuard(loop)
    tokens = torch.arange(8).view(1, 8)
    with fault(model, PLACE, "not_implemented", dtype=BFLOAT16) as put:
        for attempt in training.attempts():
            with attempt:
                with loop.autocast():
                    loss = model(input_ids=tokens, labels=tokens).loss
                loop.backward(loss)
                loop.optimizers[0].step()
    assert put.fired
    assert (training.dtype, training.events[0].remedy) == (FLOAT16, "in float16")
    assert {event.remedy.split()[0] for event in training.events[1:]} <= {"loss"}  # its scale, halved
    assert not {event.autocast for event in report(model).events} - {""}
    with fault(model.eval(), PLACE, "not_implemented", dtype=BFLOAT16) as put, torch.no_grad():
        assert model.bfloat16()(input_ids=tokens).logits.isfinite().all()
    assert put.fired
