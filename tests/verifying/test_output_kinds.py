"""As what an output is compared, and what is no difference."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from safe_dtype import Drift, drift_from, exceeds, measure_drift, record_outputs
from safe_dtype.verifying.output_kinds import as_compared, kind_of

NAN, INF = math.nan, math.inf
RANDOM = torch.Generator().manual_seed(0)
LOGITS, BOXES = torch.randn(2, 5, 8, generator=RANDOM), torch.rand(2, 5, 4, generator=RANDOM)
BATCHES = [{"x": torch.arange(2)}]


def drift_of(candidate: dict[str, Tensor], reference: dict[str, Tensor]) -> Drift:
    """Return the drift of what one says from what the other says, both at once and from a recording."""
    return measure_drift(lambda x: candidate, lambda x: reference, BATCHES)


def spoiled(tensor: Tensor, value: float = NAN) -> Tensor:
    """Return it with one number replaced."""
    changed = tensor.clone()
    changed[0, 0, 0] = value
    return changed


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("logits_per_image", (2, 3), "classes"),
        ("start_logits", (2, 7), "classes"),
        ("speech.logits", (2, 7, 9), "tokens"),
        ("masks_queries_logits", (2, 5, 8, 8), "pixels"),
        ("masks_queries_logits", (2, 1, 8, 8), "pixels"),
        ("pred_masks", (2, 5, 8, 8), "pixels"),
        ("iou_logits", (2, 1), "values"),
        ("pred_boxes", (2, 5, 4), "values"),
        ("predicted_depth", (2, 8, 8), "values"),
        ("waveform", (2, 800), "values"),
    ],
)
def test_kind_of(name: str, shape: tuple[int, ...], kind: str) -> None:
    """Logits are compared by what they decide, told by their names; all else by its numbers."""
    assert kind_of(name, torch.ones(shape)) == kind


@pytest.mark.parametrize(
    ("name", "expected", "output", "wanted"),
    [
        pytest.param("boxes", [NAN, 1.0], [NAN, 1.0], [0.0, 1.0], id="nan-in-both"),
        pytest.param("boxes", [INF, 1.0], [INF, 1.0], [0.0, 1.0], id="inf-in-both"),
        pytest.param("boxes", [-INF, 1.0], [-3e38, 1.0], [0.0, 1.0], id="the-end-of-a-range"),
        pytest.param("boxes", [INF, 1.0], [2.0, 1.0], [NAN, 1.0], id="inf-in-the-reference"),
        pytest.param("boxes", [2.0, 1.0], [NAN, 1.0], [NAN, 1.0], id="nan-in-the-candidate"),
        pytest.param("logits", [-INF, 1.0], [-INF, 2.0], [-INF, 2.0], id="ruled-out"),
        pytest.param("logits", [-INF, -INF], [-INF, -INF], [0.0, 0.0], id="nothing-else"),
        pytest.param("logits", [-INF, -INF], [1.0, -INF], [NAN, 0.0], id="nothing-else-in-one"),
        pytest.param("logits", [NAN, NAN], [NAN, NAN], [0.0, 0.0], id="no-numbers"),
    ],
)
def test_as_compared(name: str, expected: list[float], output: list[float], wanted: list[float]) -> None:
    """What both have is no difference; what only the reference has is infinitely far off."""
    _, reference, candidate = as_compared(name, torch.tensor([expected]), torch.tensor([output]))
    assert torch.equal(candidate.isnan(), torch.tensor([wanted]).isnan())
    assert torch.equal(candidate.nan_to_num(7.0), torch.tensor([wanted]).nan_to_num(7.0))
    assert not reference.isnan().any()


def test_each_head_in_its_unit() -> None:
    """Boxes are compared by their numbers beside logits that are not; the reason names the head, the worst decides."""
    off = {"logits": LOGITS, "pred_boxes": BOXES * 1.5, "depth": BOXES * 1.1}
    drift = drift_of(off, {"logits": LOGITS, "pred_boxes": BOXES, "depth": BOXES})
    heads = dict(drift.heads)
    assert (drift.kl_mean, drift.kind) == (0, "tokens")
    assert {name: head.rel_rms for name, head in heads.items()} == {
        "pred_boxes": pytest.approx(0.5),
        "depth": pytest.approx(0.1),
    }
    assert exceeds(drift, 0.2) == "pred_boxes: relative RMS difference is 0.5, the limit is 0.2"
    assert str(exceeds(drift, 0.02)).startswith("pred_boxes: ")
    assert exceeds(drift, 0.6) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name in ("pred_boxes", "value", "last_hidden_state", "start_logits")
        for value in (NAN, INF, -INF)
        if (name, value) != ("start_logits", -INF)  # it rules a class out
    ],
)
def test_a_head_that_is_no_number(name: str, value: float) -> None:
    """NaN or infinity in any head exceeds every limit, unless the reference has the same."""
    sound, bad = {"logits": LOGITS, name: BOXES}, {"logits": LOGITS, name: spoiled(BOXES, value)}
    assert f"{name}: some of its" in str(exceeds(drift_of(bad, sound), INF))
    assert exceeds(drift_of(bad, bad), 0.0) is None
    assert exceeds(drift_of(sound, sound), 0.0) is None


def test_hidden_states_are_no_heads() -> None:
    """A hidden state beside the results is held to being numbers, and to nothing else."""
    reference = {"logits": LOGITS, "last_hidden_state": BOXES}
    assert drift_of({"logits": LOGITS, "last_hidden_state": BOXES * 2}, reference).heads == ()


def test_a_value_head_under_a_mask() -> None:
    """One number a position, and padding does not count."""
    shown = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    batches = [{"x": torch.arange(2), "attention_mask": shown}]
    reference = {"logits": LOGITS, "value": BOXES[..., 0]}
    candidate = {"logits": LOGITS, "value": BOXES[..., 0].masked_fill(shown == 0, NAN)}
    drift = measure_drift(lambda **_: candidate, lambda **_: reference, batches)
    ((_, head),) = drift.heads
    assert (head.positions, head.rel_rms) == (8, 0.0)


def test_drawn_heads_are_left_out() -> None:
    """What the reference draws anew each time cannot be compared; the rest can."""
    model = lambda x: {"logits": LOGITS, "latents": torch.rand(2, 3), "boxes": BOXES}  # noqa: E731
    assert [name for name, _ in measure_drift(model, model, BATCHES).heads] == ["boxes"]


def test_recorded_heads(tmp_path: object) -> None:
    """From a recording the figures are the same, bit for bit, for heads too."""
    reference = {"logits": LOGITS, "pred_boxes": spoiled(BOXES), "audio": LOGITS.to(torch.complex64)}
    candidate = {
        "logits": LOGITS + 0.1 * LOGITS.roll(1, -1),
        "pred_boxes": spoiled(BOXES) * 1.01,
        "audio": LOGITS * 1j,
    }
    recording = record_outputs(lambda x: reference, BATCHES, str(tmp_path))
    recorded = drift_from(recording, lambda x: candidate, BATCHES)
    assert recorded == drift_of(candidate, reference)
    assert sorted(dict(recorded.heads)) == ["audio", "pred_boxes"]


def test_no_logits_and_no_hidden_state() -> None:
    """The first result is the main one: a depth, a waveform, the first item of a tuple."""
    drift = drift_of({"predicted_depth": BOXES * 2}, {"predicted_depth": BOXES})
    assert (drift.kind, drift.rel_rms) == ("values", pytest.approx(1.0))
    drift = measure_drift(lambda x: (BOXES, BOXES[0] * 2), lambda x: (BOXES, BOXES[0]), BATCHES)
    assert (drift.rel_rms, dict(drift.heads)["1"].rel_rms) == (0.0, pytest.approx(1.0))


def test_a_head_that_is_not_returned() -> None:
    """A head that a batch of the candidate's lacks exceeds every limit, and is named; a hidden state may be left out."""
    reference = {"logits": LOGITS, "pred_boxes": BOXES, "last_hidden_state": BOXES}
    drift = drift_of({"logits": LOGITS}, reference)
    assert [(name, head.positions) for name, head in drift.heads] == [("pred_boxes", 0)]
    assert exceeds(drift, INF) == "pred_boxes: the candidate does not return it"
    answers = iter([reference, {"logits": LOGITS}])
    drift = measure_drift(lambda x: next(answers), lambda x: reference, BATCHES * 2)
    assert exceeds(drift, INF) == "pred_boxes: the candidate does not return it"


NEARLY_UNIFORM = 1e-3 * torch.randn(4, 16, 32, generator=RANDOM)


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        pytest.param(NEARLY_UNIFORM, None, id="equal"),
        pytest.param(NEARLY_UNIFORM.bfloat16(), None, id="rounded"),
        pytest.param(NEARLY_UNIFORM * (1 + 0.02 * torch.randn(4, 16, 32, generator=RANDOM)), None, id="two-percent"),
        pytest.param(-NEARLY_UNIFORM, "100.00% of the first choices differ", id="turned-over"),
        pytest.param(NEARLY_UNIFORM.roll(1, -1), "of the first choices differ", id="shuffled"),
        pytest.param(torch.zeros(4, 16, 32), "of the first choices differ", id="nothing-left"),
    ],
)
def test_nearly_uniform(candidate: Tensor, reason: str | None) -> None:
    """Where KL is tiny whatever is chosen, the choices decide: those that are clear, not those that rounding flips."""
    drift = drift_of({"logits": candidate.float()}, {"logits": NEARLY_UNIFORM})
    assert drift.kl_mean < 1e-5
    assert drift.reference_nats == pytest.approx(5e-7, rel=0.2)
    why = exceeds(drift, 0.02)
    assert why is None if reason is None else reason in str(why)


def test_a_classifier_that_hesitates() -> None:
    """Two classes near 50 %: a clear turn is told from one within rounding."""
    logits = torch.tensor([[0.05, -0.05], [-0.04, 0.06], [0.02, -0.03]]).repeat(10, 1)
    within_rounding = torch.tensor([[4.0, 4.0001], [4.0001, 4.0]]).repeat(10, 1)
    assert "first choices" in str(exceeds(drift_of({"logits": -logits}, {"logits": logits}), 0.02))
    assert exceeds(drift_of({"logits": within_rounding.flip(1)}, {"logits": within_rounding}), 0.02) is None


def test_sure_references_are_held_to_their_kl() -> None:
    """Far from uniform, KL decides as ever, whatever flips; so it does where the limit is infinity."""
    drift = drift_of({"logits": -9 * LOGITS}, {"logits": 9 * LOGITS})
    assert drift.reference_nats > 0.5
    assert drift.clear_flips == 1.0
    assert str(exceeds(drift, 0.02)).startswith("mean KL")
    turned = drift_of({"logits": -NEARLY_UNIFORM}, {"logits": NEARLY_UNIFORM})
    assert exceeds(turned, INF) is None
