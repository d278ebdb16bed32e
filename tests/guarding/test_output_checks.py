"""Which results of a step are numbers that can be used."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from guarding.generators import tiny
from torch import nn
from zoo import ZOO

from safe_dtype import FLOAT16, FLOAT32, guard, report
from safe_dtype.guarding import FailureKind
from safe_dtype.guarding.output_checks import is_sound, saturated, saturation_watch, watched_blocks
from safe_dtype.testing import fault
from safe_dtype.verifying.result_fields import results_of

IDS = torch.arange(3, 9)[None]
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def test_the_callers_own_nan() -> None:
    """A NaN that is given is given back: it is not the dtype's."""
    model = guard(tiny())
    embedded = torch.full((1, 3, 32), torch.nan, dtype=BF16)
    assert model(inputs_embeds=embedded).logits.isnan().all()
    assert report(model).events == ()


class Padded(nn.Module):
    """NaN at padded positions, by design."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2).to(BF16)

    def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return (batch, positions, 2)."""
        return self.linear(hidden).masked_fill(attention_mask[..., None] == 0, torch.nan)


SHOWN = torch.tensor([[1, 1, 0]])


def test_padding_may_be_anything() -> None:
    """A NaN at a padded position of an encoder is nobody's business; at a real one it is."""
    net = guard(Padded().eval())
    net(torch.ones(1, 3, 2, dtype=BF16), attention_mask=SHOWN)
    assert report(net).events == ()
    with fault(net, "linear", "nan"):
        net(torch.ones(1, 3, 2, dtype=BF16), attention_mask=SHOWN)
    assert [event.after for event in report(net).events] == [FLOAT32]


@torch.no_grad()
def test_finite_and_wrong() -> None:
    """T5 clamps in float16 and returns finite nonsense, 44 % off: the pinned block is found, and rescaled it is right."""
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=97, d_model=32, d_kv=8, d_ff=64, num_layers=3, num_heads=4)
    model = transformers.T5ForConditionalGeneration(config).eval()
    for block in model.encoder.block:
        block.layer[1].DenseReluDense.wi.weight.mul_(1000)
        block.layer[1].DenseReluDense.wo.weight.mul_(3000)
    given = {"input_ids": IDS, "decoder_input_ids": IDS}
    truth = model(**given).logits

    def error(other: Any) -> float:
        found = other(**given).logits.float()
        assert found.isfinite().all()
        return float((found - truth).norm() / truth.norm())

    assert error(copy.deepcopy(model).half()) > 0.1
    guarded = guard(model.half())
    assert error(guarded) < 0.01
    (event,) = report(guarded).events
    assert (event.kind, event.before, event.after) == (FailureKind.NONFINITE, FLOAT16, FLOAT16)
    assert event.remedy == "an exact rescaling"
    assert event.module == "encoder.block.0"
    assert "pinned" in event.message


def test_a_loss_of_nothing_is_nan() -> None:
    """The mean over no labels is NaN, in any dtype; the logits are what counts."""
    model = guard(tiny())
    with torch.no_grad():
        assert model(input_ids=IDS, labels=torch.full_like(IDS, -100)).loss.isnan()
    assert report(model).events == ()


def test_one_read_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many results there are, their numbers are read once: each read waits for the device."""
    reads: list[str] = []
    for name in ("item", "tolist", "__bool__", "__float__"):
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, real=real, name=name: (reads.append(name), real(self))[1])
    assert is_sound({"logits": ONES, "boxes": ONES, "masks": ONES}, {})
    assert reads == ["tolist"]
    reads.clear()
    assert is_sound({"logits": ONES}, {})
    assert reads == ["item"]


def test_padding_is_spoken_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """Rows of NaN under `attention_mask` are handed on with one line: mean pooling makes NaN of them."""
    net = guard(Padded().eval())
    with caplog.at_level("WARNING", "safe_dtype"):
        for _ in range(2):
            assert net(torch.ones(1, 3, 2, dtype=BF16), attention_mask=SHOWN).isnan().any()
    (line,) = caplog.messages
    assert "pool over the rows that the mask shows" in line


def test_a_decoder_has_a_mask_of_its_own() -> None:
    """What the encoder's mask hides are no rows of the decoder, even where both have as many."""
    output = {"logits": torch.tensor([[[1.0, 2.0], [1.0, 2.0], [NAN, 2.0]]])}
    assert is_sound(output, {"attention_mask": SHOWN})
    assert not is_sound(output, {"attention_mask": SHOWN, "decoder_input_ids": IDS[:, :3]})
    assert is_sound(output, {"decoder_attention_mask": SHOWN, "decoder_input_ids": IDS[:, :3]})


def test_the_loss_in_a_tuple() -> None:
    """With labels, the number without dimensions in a tuple is the loss; without, it is a result."""
    output = (torch.tensor(NAN), ONES)
    assert is_sound(output, {"labels": IDS})
    assert not is_sound(output, {})


NAN, INF = torch.nan, torch.inf
ONES = torch.ones(1, 2)


@pytest.mark.parametrize(
    ("output", "sound"),
    [
        pytest.param(torch.tensor([[1.0, 2.0]]), True, id="numbers"),
        pytest.param(torch.tensor([[1.0, -INF], [2.0, 3.0]]), True, id="a-mask-over-the-vocabulary"),
        pytest.param(torch.tensor([[-INF, -INF], [2.0, 3.0]]), False, id="a-row-of-nothing-else"),
        pytest.param(torch.tensor([[1.0, INF], [2.0, 3.0]]), False, id="inf"),
        pytest.param(torch.tensor([[1.0, NAN]]), False, id="nan"),
        pytest.param(torch.tensor([NAN]).to("meta"), True, id="no-numbers"),
        pytest.param(torch.tensor([[1, 2]]), True, id="integers"),
        pytest.param({"hidden_states": (torch.tensor([[NAN]]),), "aux_loss": torch.tensor(NAN)}, True, id="beside"),
        pytest.param({"boxes": torch.tensor([[NAN, 1.0], [1.0, 1.0]])}, False, id="a-result-of-another-name"),
        pytest.param({"logits": ONES, "pred_boxes": torch.tensor([[NAN, 1.0]])}, False, id="beside-sound-logits"),
        pytest.param({"last_hidden_state": ONES, "value": torch.tensor([1.0, INF])}, False, id="a-value-head"),
        pytest.param({"logits": ONES, "depth": torch.tensor([[1.0, -INF]])}, False, id="no-score"),
        pytest.param({"logits": ONES, "scores": torch.tensor([[1.0, -INF]])}, True, id="ruled-out"),
        pytest.param({"logits": ONES, "wide": torch.tensor([[1e300]], dtype=torch.float64)}, True, id="float64"),
        pytest.param({"logits": ONES, "mean": torch.tensor(NAN)}, False, id="one-number"),
        pytest.param({"sample": torch.tensor([complex(1, NAN)])}, False, id="complex"),
        pytest.param((torch.ones(1, 2), (torch.tensor([[NAN, 1.0]]),)), False, id="nested-tuples"),
        pytest.param("text", True, id="no-tensors"),
    ],
)
def test_is_sound(output: Any, *, sound: bool) -> None:
    """NaN, +Inf and rows of -Inf are no results; what is returned beside the results does not count."""
    assert is_sound(output, {}) == sound


# In bfloat16 plain transformers 5.16 fails at it.
SINCE = {"grounding-dino": pytest.mark.needs("transformers>=5.21")}


@torch.no_grad()
@pytest.mark.parametrize("name", [pytest.param(name, marks=SINCE.get(name, ())) for name in ZOO])
def test_every_result_of_every_architecture(name: str) -> None:
    """No result of a sound model is taken for spoiled, and a single NaN or +Inf in any of them is seen."""
    model, inputs = ZOO[name].born(BF16)
    guard(model)
    output = model(**inputs)
    assert report(model).events == ()
    results = results_of(output)
    assert results
    for key, tensor in results:
        first = (0,) * tensor.dim()
        number = tensor[first].clone()
        for value in (NAN, INF):
            tensor[first] = value
            assert not is_sound(output, inputs), key
        tensor[first] = number
        assert is_sound(output, inputs)


@pytest.mark.parametrize(
    ("value", "dtype", "is_pinned"),
    [(65504.0, FP16, True), (64512.0, FP16, True), (60000.0, FP16, False), (65504.0, FP32, False), (NAN, FP16, True)],
)
def test_saturated(value: float, dtype: torch.dtype, *, is_pinned: bool) -> None:
    """A block whose values lie where transformers clamps them, or are none, is found; in float32 nothing is looked at."""
    first, second = nn.Identity(), nn.Identity()
    with saturation_watch([first, second]) as peaks:
        second(first(torch.ones(2, 3, dtype=dtype)) * value)
    assert saturated(peaks) is (second if is_pinned else None)
    assert not first._forward_hooks


def test_watched_blocks() -> None:
    """Blocks that clamp are watched in any model, all blocks only in one that was made in a wider range."""
    clamping, plain = tiny("t5"), tiny()
    assert watched_blocks(plain, was_wider=False) == []
    assert watched_blocks(plain, was_wider=True) == list(plain.model.layers)
    assert clamping.encoder.block[0] in watched_blocks(clamping, was_wider=False)
