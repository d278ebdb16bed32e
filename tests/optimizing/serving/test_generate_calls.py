"""`generate` goes by the compiled step, gives what eager gives, and goes on eagerly where the step is not for it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from guarding.generators import BOTH_ROWS, IDS, ONE_ROW
from optimizing.compiled_generation import captured_only, graphs, made, tiny_generator
from optimizing.form_models import Mlp
from optimizing.made import optimized
from transformers.generation.streamers import BaseStreamer

from safe_dtype import report
from safe_dtype.errors import NotOptimizedError, SafeDtypeWarning
from safe_dtype.facts import BFLOAT16, FLOAT32
from safe_dtype.guarding import FailureKind
from safe_dtype.optimizing.serving.optimized import load_optimized

pytestmark = pytest.mark.usefixtures("own_cache", "captured_only")
__all__ = ["captured_only"]

GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}


class Kept(BaseStreamer):
    """Keeps what a streamer is given."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        """Keep it."""
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        """Nothing is left to write."""


@pytest.mark.needs("torch>=2.13")
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(GREEDY, id="greedy"),
        pytest.param({**GREEDY, "do_sample": True, "temperature": 0.8}, id="sampled"),
        pytest.param({"max_length": 11, "pad_token_id": 0, "do_sample": False}, id="by-length"),
    ],
)
def test_as_eager(options: dict[str, Any], tmp_path: Path) -> None:
    """Prompts of two lengths, one row or two, padded on the left: the tokens are eager's, by one graph for each size."""
    loaded, plain = made(tmp_path / "out"), tiny_generator()
    longer = {"input_ids": torch.arange(20, 29)[None], "attention_mask": torch.ones(1, 9, dtype=torch.long)}
    for number, inputs in ((1, ONE_ROW), (1, longer), (2, BOTH_ROWS), (2, ONE_ROW)):
        answers = []
        for model in (loaded, plain):
            torch.manual_seed(3)
            answers.append(model.generate(**inputs, **options))
        assert torch.equal(*answers)
        assert graphs() == number
    assert (loaded.fell_back, loaded.given_up) == ("", False)


@pytest.mark.needs("torch>=2.13")
def test_streamed(tmp_path: Path) -> None:
    """A streamer is given the prompt and each token, and the prompt may be passed by its place."""
    loaded, kept = made(tmp_path / "out"), Kept()
    answer = loaded.generate(IDS[1:], streamer=kept, **GREEDY)
    assert kept.tokens == answer[0].tolist()
    assert graphs() == 1


@pytest.mark.needs("torch>=2.13")
def test_nan_at_the_third_step(tmp_path: Path) -> None:
    """Where the compiled step gives NaN, that very step runs again in float32, eagerly, and so does the rest."""
    loaded, truth = made(tmp_path / "out", BFLOAT16), tiny_generator(torch.bfloat16)
    begun = truth.generate(**ONE_ROW, **{**GREEDY, "max_new_tokens": 3})
    poison = int(begun[0, -1])  # the third new token: the third step after the prompt's is given it
    truth.float()
    expected = truth.generate(begun, **{**GREEDY, "max_new_tokens": 3})

    class Poisoned(torch.nn.Embedding):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            embedded = super().forward(ids)
            if embedded.dtype != torch.bfloat16:
                return embedded
            return embedded.masked_fill((ids == poison)[..., None], torch.nan)

    model: Any = loaded.eager()
    model.model.embed_tokens.__class__ = Poisoned
    with pytest.warns(SafeDtypeWarning, match="generate in bfloat16 failed, and the text went on eagerly"):
        answer = loaded.generate(**ONE_ROW, **GREEDY)
    (event,) = report(model).events
    assert (event.kind, event.step, event.after, event.restarted) == (FailureKind.NONFINITE, 3, FLOAT32, False)
    assert torch.equal(answer, expected)
    assert graphs() == 1  # none in float32
    assert loaded.given_up
    assert torch.equal(loaded.generate(**ONE_ROW, **GREEDY)[:, :6], ONE_ROW["input_ids"])
    assert graphs() == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        pytest.param({"max_new_tokens": 27}, "up to 33 tokens; its cache holds 32", id="longer-than-the-cache"),
        pytest.param({"num_beams": 2}, "num_beams=2", id="beams"),
        pytest.param({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences=2", id="several-texts"),
        pytest.param({"use_cache": False}, "use_cache=False", id="without-a-cache"),
        pytest.param({"cache_implementation": "static"}, "cache_implementation", id="a-cache-of-the-callers"),
        pytest.param({"input_ids": IDS[:1].expand(3, 6)}, "a batch of 3; it was made for 1, 2", id="more-rows"),
    ],
)
def test_calls_of_another_kind(options: dict[str, Any], why: str, tmp_path: Path) -> None:
    """A call that the step was not compiled for is eager's, with one warning, and the form stays."""
    loaded, plain = made(tmp_path / "out"), tiny_generator()
    call = {**GREEDY, "input_ids": IDS[1:], **options}
    torch.manual_seed(3)
    with pytest.warns(SafeDtypeWarning, match="was not made for such a call") as caught:
        answer = loaded.generate(**call)
    assert why in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SafeDtypeWarning)
        loaded.generate(**call)
    torch.manual_seed(3)
    assert torch.equal(answer, plain.generate(**call))
    assert (graphs(), loaded.given_up) == (0, False)
    assert why in loaded.fell_back


def test_called_by_itself(tmp_path: Path) -> None:
    """A call of the model is eager's: the form is for `generate`."""
    loaded = made(tmp_path / "out")
    with torch.no_grad():
        expected = tiny_generator()(**ONE_ROW).logits
    assert torch.equal(loaded(**ONE_ROW)["logits"], expected)
    assert (graphs(), loaded.fell_back) == (0, "")


def test_another_form(tmp_path: Path) -> None:
    """A folder with another form generates eagerly, and one of a model that has no `generate` says so."""
    optimized(tiny_generator(), tmp_path / "text", "eager", inputs=BOTH_ROWS)
    loaded = load_optimized(tmp_path / "text")
    assert torch.equal(loaded.generate(**ONE_ROW, **GREEDY), tiny_generator().generate(**ONE_ROW, **GREEDY))
    optimized(Mlp(), tmp_path / "mlp", "eager")
    with pytest.raises(NotOptimizedError, match="a Mlp has no generate"):
        load_optimized(tmp_path / "mlp").generate()
