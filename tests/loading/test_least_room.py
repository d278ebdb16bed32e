"""Loading where memory is short, in a process that the system ends as soon as it takes more than it has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from limited_memory import run_limited

from safe_dtype.errors import NothingFitsError, SafeDtypeWarning
from safe_dtype.loading import SafeAutoModel

CHILD = """
import json
import torch
from safe_dtype import SafeAutoModelForCausalLM, plan_of
from safe_dtype.errors import SafeDtypeError
from safe_dtype.loading.plan_request import plan_request
from safe_dtype.loading.request import Request

def generate(model):
    ids = torch.arange(16)[None] % 90 + 3
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, min_new_tokens=4, do_sample=False)

folder, tiny, room, options = sys.argv[2], sys.argv[3], int(sys.argv[4]), json.loads(sys.argv[5])
generate(SafeAutoModelForCausalLM.from_pretrained(tiny))
plan_request(Request(folder, {}), options.get("policy"))  # the CPU is measured, which takes memory of its own
leave_room(room)
try:
    model = SafeAutoModelForCausalLM.from_pretrained(folder, **options)
except SafeDtypeError as exc:
    print(json.dumps({"error": type(exc).__name__, "text": str(exc)}))
else:
    print(json.dumps({"plan": plan_of(model).what, "tokens": generate(model).tolist()[0]}))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, int]]:
    """A Qwen3 of 76 million parameters in float32 and in bfloat16, and the bytes of its weights."""
    torch.manual_seed(0)
    heads = {"num_hidden_layers": 8, "num_attention_heads": 12, "num_key_value_heads": 6, "head_dim": 64}
    sizes = {"vocab_size": 32000, "hidden_size": 768, "intermediate_size": 2048, "tie_word_embeddings": True}
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**sizes, **heads))
    place, made = tmp_path_factory.mktemp("limited"), {}
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype).save_pretrained(place / str(dtype).removeprefix("torch."))
        size = sum(one.numel() * one.itemsize for one in model.parameters())
        made[str(dtype).removeprefix("torch.")] = (place / str(dtype).removeprefix("torch."), size)
    return made


@pytest.fixture
def load_limited(
    folders: dict[str, tuple[Path, int]], tiny_qwen3: Path, tmp_path: Path
) -> Callable[..., dict[str, Any]]:
    """Return a function that loads and generates in a process with room for a share of the weights, and says what came."""

    def run(saved: str, share: float, **options: Any) -> dict[str, Any]:
        folder, size = folders[saved]
        arguments = (str(folder), str(tiny_qwen3), str(int(size * share)), json.dumps(options))
        done = run_limited(CHILD, *arguments, environment={"SAFE_DTYPE_CACHE": str(tmp_path / "cache")})
        assert done.returncode == 0, f"{done.returncode}: {done.stderr[-2000:]}"
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer

    return run


def test_not_even_a_layer(saved: Callable[..., Path]) -> None:
    """Where the largest weight does not fit while the others are on disk, the error has the bytes of every way."""
    text = r"device_map='auto': its largest weight takes .* kB, 1 kB are free"
    with (
        pytest.warns(SafeDtypeWarning, match="device_map='auto' leaves the rest on disk"),
        pytest.raises(NothingFitsError, match=text) as caught,
    ):
        SafeAutoModel.from_pretrained(saved("qwen3"), max_memory={"cpu": 1000})
    assert "float32: needs" in str(caught.value)
    assert caught.value.source == str(saved("qwen3"))


LIMITED = [pytest.mark.slow, pytest.mark.needs("control_group")]


@pytest.mark.parametrize(
    ("saved_in", "share", "options"),
    [
        pytest.param("float32", 0.75, {"policy": "prompt=16,new=4"}, marks=LIMITED, id="float32-does-not-fit"),
        pytest.param("bfloat16", 0.75, {"policy": "prompt=16,new=4"}, marks=LIMITED, id="nor-16-bit"),
        pytest.param("bfloat16", 0.45, {"policy": "prompt=16,new=4"}, marks=LIMITED, id="nor-8-bit"),
    ],
)
def test_under_a_limit(saved_in: str, share: float, options: dict[str, Any], load_limited: Any) -> None:
    """A model that does not fit whole loads in another way and generates, and nothing kills the process."""
    answer = load_limited(saved_in, share, **options)
    assert len(answer.get("tokens", ())) == 20, answer
    assert "device_map=auto" in answer["plan"]


@pytest.mark.slow
@pytest.mark.needs("control_group")
def test_nothing_fits_under_a_limit(load_limited: Any) -> None:
    """Where the limit leaves no room for the largest weight the error comes, with its bytes, before the system ends the process."""
    answer = load_limited("bfloat16", 0.2, policy="prompt=16,new=4")
    assert answer["error"] == "NothingFitsError"
    assert "device_map='auto': its largest weight takes 49.2 MB, " in answer["text"]


@pytest.mark.slow
@pytest.mark.needs("control_group")
def test_8_bits_under_a_limit(load_limited: Any) -> None:
    """Who allows 8 bits has all of the model in memory where its 16 bits do not fit."""
    answer = load_limited("bfloat16", 0.85, policy="int8,prompt=16,new=4")
    assert answer["plan"].startswith("int8"), answer
    assert len(answer["tokens"]) == 20
