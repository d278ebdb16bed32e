"""NaN and Inf that float32 gives as well are the model's own: handed on, and nothing is changed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from guarding.generators import DOWN, ONE_ROW, generator, tiny
from torch import nn

from safe_dtype import FLOAT32, guard, report
from safe_dtype.testing import fault

BF16, FP16 = torch.bfloat16, torch.float16
X = torch.ones(2, 8, dtype=BF16)
SHORT, LONG = torch.tensor([4, 0]), torch.tensor([4, 3])
RUNS: list[int] = []  # one a run of `Scores`


class Scores(nn.Module):
    """NaN for an item without length, by design."""

    def __init__(self, dtype: torch.dtype = BF16, times: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(8, 8, bias=False).to(dtype)
        self.times = times

    def forward(self, x: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """Return scores (batch, 8)."""
        RUNS.append(1)
        hidden = self.linear(x) * self.times
        return hidden.masked_fill(torch.arange(8)[None] >= length[:, None], -torch.inf).softmax(-1)


class Head(nn.Module):
    """Boxes behind the scores, and a draw."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.boxes = Scores(), nn.Linear(8, 4).to(BF16)

    def forward(self, x: torch.Tensor, length: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return scores (batch, 8) and boxes (batch, 4)."""
        noise = torch.rand_like(x)
        return {"scores": self.scores(x + noise, length), "boxes": self.boxes(self.scores(x, length))}


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether all bits are the same, NaN for NaN."""
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("policy", ["auto", "strict"])
def test_nan_by_design(policy: str) -> None:
    """The output is that of the plain model, again and again; dtype, weights and events are what they were."""
    plain, model = Scores().eval(), guard(Scores().eval(), policy=policy)
    weight = model.linear.weight
    for _ in range(3):
        assert equal(model(X, SHORT), plain(X, SHORT))
    assert report(model).events == ()
    assert model.linear.weight is weight
    assert weight.dtype == BF16
    assert not model._forward_hooks
    assert not model.linear._forward_hooks


class Overflow(nn.Module):
    """Overflows in float16, and not in float32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x, or Inf."""
        return x * 1e4 * 1e4 / 1e8


def overflow_and_own() -> nn.Module:
    """Return a model in float16 whose second module overflows, and whose last makes NaN in every dtype."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8, bias=False).half(), Overflow(), nn.Linear(8, 8, bias=False).half()).eval()
    model[2].register_forward_hook(lambda module, args, output: output * torch.nan)
    return model


def test_strict_asks_the_whole_step(caplog: pytest.LogCaptureFixture) -> None:
    """A module that float32 mends is not named as the cure where the step has NaN in float32 all the same."""
    plain, model = overflow_and_own(), guard(overflow_and_own(), policy="strict")
    for _ in range(2):
        assert equal(model(X.half()), plain(X.half()))
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("NaN or Inf in the results of Sequential comes in float32 as well: handed on")
    assert model[0].weight.dtype == FP16
    assert report(model).events == ()


def test_the_log_says_that_it_is_its_own(caplog: pytest.LogCaptureFixture) -> None:
    """Where float32 was put in and taken back, the log says why, and what to look at."""
    model = guard(overflow_and_own())
    assert model(X.half()).isnan().all()
    assert model[0].weight.dtype == FP16
    lines = [record.getMessage() for record in caplog.records]
    assert any("NaN or Inf in 2 comes in float32 as well: handed on, and nothing was changed. Next: " in line
               for line in lines)  # fmt: skip
    assert not any("did not help" in line for line in lines)


def test_it_is_remembered() -> None:
    """The same step again costs one run, as in a plain model; another with the same rows asks the module alone."""
    model = guard(Scores().eval())
    for x, runs in ((X, None), (X, 1), (X * 2, 2), (X, 1)):
        RUNS.clear()
        model(x, SHORT)
        assert runs in (None, len(RUNS))


def test_remembered_in_other_rows() -> None:
    """Other rows of the same module are its own as well, where float32 says so."""
    plain, model = Scores().eval(), guard(Scores().eval())
    for length in (SHORT, SHORT.flip(0), torch.tensor([0, 0]), LONG):
        assert equal(model(X, length), plain(X, length))
    assert report(model).events == ()


@pytest.mark.parametrize("length", [SHORT, SHORT.flip(0), LONG], ids=["same-rows", "other-rows", "all-rows"])
def test_a_later_overflow_is_cured(length: torch.Tensor) -> None:
    """A module that has NaN of its own may overflow all the same, in the very rows that were NaN before."""
    model = guard(Scores(FP16, times=3e5).eval())
    x = torch.full((2, 8), 1e-4, dtype=FP16)
    assert model(x, SHORT)[1].isnan().all()
    assert report(model).events == ()
    x = x * torch.tensor([[1.0], [1e4]], dtype=FP16)
    right = guard(Scores(torch.float32, times=3e5).eval())(x.float(), LONG)
    assert torch.allclose(model(x, LONG).float(), right, atol=1e-3)
    (event,) = report(model).events
    assert event.after == FLOAT32


def test_deep_inside_and_drawing() -> None:
    """Two calls of one module, results of two names, and random numbers: one step's worth of them, no more."""
    plain, model = Head().eval(), guard(Head().eval())
    for length in (SHORT, SHORT, SHORT.flip(0)):
        torch.manual_seed(3)
        expected, state = plain(X, length), torch.get_rng_state()
        torch.manual_seed(3)
        output = model(X, length)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(equal(output[name], expected[name]) for name in expected)
    assert report(model).events == ()


@pytest.mark.parametrize("need_weights", [True, False])
def test_attention_over_nothing(need_weights: bool) -> None:
    """A row that is masked from end to end is NaN in torch's own attention, in every dtype."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True).to(BF16)
            self.norm = nn.LayerNorm(8).to(BF16)

        def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> Any:
            return self.norm(self.attention(x, x, x, key_padding_mask=hidden, need_weights=need_weights)[0])

    x, hidden = torch.randn(2, 3, 8).to(BF16), torch.tensor([[False] * 3, [True] * 3])
    plain = Encoder().eval()
    model = guard(copy.deepcopy(plain))
    for _ in range(2):
        assert equal(model(x, hidden), plain(x, hidden))
    assert report(model).events == ()


def test_generation() -> None:
    """A module that is NaN in float32 too: tokens and cache are those of the plain model, and nothing begins anew."""
    outputs = []
    for model in (generator(), guard(generator())):
        with fault(model, DOWN, "nan", call=2, row=0), fault(model, DOWN, "nan", dtype=FLOAT32):
            outputs.append(model.generate(**ONE_ROW, max_new_tokens=6, do_sample=False, return_dict_in_generate=True))
    assert torch.equal(outputs[0].sequences, outputs[1].sequences)
    assert outputs[0].past_key_values.get_seq_length() == outputs[1].past_key_values.get_seq_length()
    assert report(model).events == ()
    assert model.dtype == BF16


def test_a_later_overflow_in_a_cache_is_cured() -> None:
    """A key that left float16's range, seen one step later, is none of the model's own, whatever was found before."""
    expected = _with_late_overflow(generator().float()).generate(**ONE_ROW, max_new_tokens=6, do_sample=False)
    plain = _with_late_overflow(generator().half()).generate(
        **ONE_ROW, max_new_tokens=6, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    if all(logits.isfinite().all() for logits in plain.logits):
        pytest.skip("the kernels of this CPU do not overflow here")
    model = guard(_with_late_overflow(generator().half()))
    assert model(**ONE_ROW, use_cache=False).logits.isnan().any()
    assert report(model).events == ()
    assert torch.equal(model.generate(**ONE_ROW, max_new_tokens=6, do_sample=False), expected)
    assert model.dtype == torch.float32


def _with_late_overflow(model: Any) -> Any:
    """Have a model overflow in its cache, at the seventh token; without a cache it gives NaN in any dtype."""

    def spoil(_module: nn.Module, _args: Any, output: Any) -> None:
        if output.past_key_values is None:
            output.last_hidden_state[:, 0] = torch.nan
        elif output.past_key_values.get_seq_length() == 7:
            keys = output.past_key_values.layers[1].keys
            keys[..., -1, 0] = torch.tensor(300, dtype=keys.dtype) ** 2

    model.model.register_forward_hook(spoil)
    return model


def test_the_callers_own_numbers_in_a_generation() -> None:
    """A generation that is asked with NaN gives what it gives in plain transformers, in the dtype that it has."""
    plain, model = generator(), guard(generator())
    embeds = plain.get_input_embeddings()(ONE_ROW["input_ids"]).clone()
    embeds[0, 2, 3] = torch.nan
    found, expected = (one.generate(inputs_embeds=embeds, max_new_tokens=6, do_sample=False) for one in (model, plain))
    assert torch.equal(found, expected)
    assert report(model).events == ()
    assert model.dtype == BF16


def test_weights_that_are_no_numbers() -> None:
    """Inf in the weights may have been finite before they came into float16: float32 is tried, and taken back."""
    model = tiny()
    model.get_submodule(DOWN).weight[0, 0] = torch.inf
    guard(model)
    assert model(**ONE_ROW).logits.isnan().any()
    assert report(model).events == ()
    assert model.dtype == BF16


def test_the_callers_own_numbers() -> None:
    """NaN in lists and dicts of inputs is the caller's."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2).to(BF16)

        def forward(self, parts: Any) -> torch.Tensor:
            return self.linear(sum(parts["x"]))

    model = guard(Sum().eval())
    spoiled = torch.tensor([[1.0, torch.nan]], dtype=BF16)
    assert model({"x": [spoiled, spoiled]}).isnan().any()
    assert report(model).events == ()


class Product(nn.Module):
    """Overflows in float16 where x is large; `mixes` adds all items of the batch."""

    def __init__(self, *, mixes: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, bias=False).to(FP16)
        self.mixes = mixes
        nn.init.ones_(self.linear.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (batch, 4)."""
        hidden = self.linear(x)
        return self.linear(x) * (hidden.mean(0) if self.mixes else hidden)


def test_an_overflow_beside_the_callers_own_numbers() -> None:
    """An item of a batch that overflows is cured, though another is NaN as it came in."""
    x = torch.tensor([[1.0], [torch.nan], [3e2]], dtype=FP16).expand(3, 4).contiguous()
    model = guard(Product().eval())
    for _ in range(2):
        assert model(x).isfinite().all(1).tolist() == [True, False, True]
    assert [event.after for event in report(model).events] == [FLOAT32]


def test_the_callers_own_numbers_go_round() -> None:
    """Where NaN of one item reaches the others in float32 as well, it is handed on."""
    x = torch.tensor([[1.0], [torch.nan], [3.0]], dtype=FP16).expand(3, 4).contiguous()
    model = guard(Product(mixes=True).eval())
    assert model(x).isnan().all()
    assert report(model).events == ()


def test_a_copy_knows_nothing() -> None:
    """A deep copy of a guarded model finds out by itself, and about its own modules."""
    model = guard(Scores().eval())
    model(X, SHORT)
    copied = copy.deepcopy(model)
    assert copied(X, SHORT)[1].isnan().all()
    assert report(copied).events == ()
