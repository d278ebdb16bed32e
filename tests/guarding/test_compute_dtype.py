"""In which dtype a guarded step computes: as planned, by its rows; and what happens to that when the dtype fails."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import factories as f
import pytest
import torch
import transformers as tf
from transformers import AutoModelForCausalLM

from safe_dtype import SafeAutoModel, compute_in, guard, report
from safe_dtype.checkpoints import read_checkpoint
from safe_dtype.facts import BFLOAT16, FLOAT32, VerdictKind
from safe_dtype.guarding.compute_dtype import rows_of
from safe_dtype.models.block_layout import blocks_of
from safe_dtype.planning import Plan, make_plan
from safe_dtype.testing import fault

CAST = f.verdict(BFLOAT16, VerdictKind.NATIVE, 7, 90, op="matmul_cast")
BLOCKS = f.verdict(BFLOAT16, VerdictKind.NATIVE, 25, 95, op="matmul_blocks_cast")
PLAIN_CPU = replace(f.AVX2_CPU, device="cpu", verdicts=(*f.AVX2_CPU.verdicts, CAST))
BLOCKS_CPU = replace(PLAIN_CPU, verdicts=(*PLAIN_CPU.verdicts, BLOCKS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with matrices large enough for blocks, tied, in bfloat16."""
    torch.manual_seed(0)
    config = tf.Qwen3Config(
        vocab_size=1000, hidden_size=512, intermediate_size=1024, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=128, tie_word_embeddings=True,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("bfloat16")
    tf.Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def plan_for(folder: Path, *, blocks: bool = False) -> Plan:
    """Return a plan that stores in bfloat16 and computes in float32 from 9 rows on."""
    device = BLOCKS_CPU if blocks else PLAIN_CPU
    plan = replace(make_plan(device, read_checkpoint(folder)), made_for=None)  # there is no such device here
    assert (plan.storage, plan.compute) == (BFLOAT16, FLOAT32)
    assert plan.routes is not None
    assert plan.routes.cast_from == 9
    assert plan.routes.layout == ("blocks" if blocks else "plain")
    return plan


def plain(folder: Path, dtype: str = "bfloat16") -> Any:
    """Load as plain transformers does."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def ids(rows: int) -> torch.Tensor:
    """Return a prompt."""
    return torch.arange(5, 5 + rows)[None]


def tokens(model: Any, rows: int = 16, new: int = 8) -> list[int]:
    """Return what greedy decoding makes of a prompt."""
    found = model.generate(ids(rows), max_new_tokens=new, do_sample=False, pad_token_id=0)
    return found[0].tolist()  # type: ignore[no-any-return]


@torch.inference_mode()
def test_by_name(folder: Path) -> None:
    """Methods that are called by their name compute as planned too."""
    model, same = SafeAutoModel.from_pretrained(folder, plan=plan_for(folder)), plain(folder)
    with compute_in("float32"):
        wanted, hidden = same(ids(16)).logits, same.model(ids(16)).last_hidden_state
    assert torch.equal(model.forward(ids(16)).logits, wanted)
    assert torch.equal(model.model.forward(input_ids=ids(16)).last_hidden_state, hidden)
    assert torch.equal(model.forward(ids(8)).logits, same(ids(8)).logits)
    assert not torch.equal(same(ids(16)).logits, wanted)


@torch.inference_mode()
def test_by_rows(folder: Path) -> None:
    """A step of many rows computes in float32, one of few rows in the storage dtype, bit for bit."""
    model, same = SafeAutoModel.from_pretrained(folder, plan=plan_for(folder)), plain(folder)
    with compute_in("float32"):
        wanted = same(ids(16)).logits
    blocks = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: blocks.append(around()))
    assert torch.equal(model(ids(16)).logits, wanted)
    assert torch.equal(model(ids(8)).logits, same(ids(8)).logits)
    assert blocks == [[torch.float32], []]


def around() -> list[torch.dtype]:
    """Return what the blocks of `compute_in` compute in that this thread is in."""
    return [one.dtype for one in torch.overrides._get_current_function_mode_stack() if isinstance(one, compute_in)]


@torch.inference_mode()
@pytest.mark.parametrize("blocks", [False, True], ids=["plain", "blocks"])
@pytest.mark.parametrize("rows", [1, 4, 16])
def test_nearer_to_float32(folder: Path, rows: int, *, blocks: bool) -> None:
    """Logits come out in the storage dtype, as near to float32's as those of plain transformers or nearer."""
    exact = plain(folder, "float32")(ids(rows)).logits
    model = SafeAutoModel.from_pretrained(folder, plan=plan_for(folder, blocks=blocks))
    logits = model(ids(rows)).logits
    assert logits.dtype == torch.bfloat16
    allowed = (plain(folder)(ids(rows)).logits - exact).square().mean().sqrt()
    assert (logits - exact).square().mean().sqrt() <= allowed * 1.1
    assert not report(model).events


@pytest.mark.needs("pagemap")
def test_generation(folder: Path) -> None:
    """Whole generations run, with the weights in blocks and the parameters as they were."""
    model = SafeAutoModel.from_pretrained(folder, plan=plan_for(folder, blocks=True))
    assert blocks_of(model.model.layers[0].mlp.up_proj) is not None
    assert len(tokens(model)) == 24
    for name, one in plain(folder).state_dict().items():
        assert torch.equal(model.state_dict()[name], one), name


@pytest.mark.parametrize("blocks", [False, True], ids=["plain", "blocks"])
@pytest.mark.parametrize("call", [0, 3])
def test_step_down(folder: Path, call: int, *, blocks: bool) -> None:
    """After a step down the model is one in float32, without blocks or casts: what follows is plain float32's."""
    model = SafeAutoModel.from_pretrained(folder, plan=plan_for(folder, blocks=blocks))
    with fault(model, "model.layers.1.mlp", "cublas", call=call):
        tokens(model)
    assert [event.after for event in report(model).events] == [FLOAT32]
    assert blocks_of(model.model.layers[0].mlp.up_proj) is None
    assert type(model.lm_head) is torch.nn.Linear
    with torch.inference_mode():
        assert torch.equal(model(ids(16)).logits, plain(folder, "float32")(ids(16)).logits)


def test_nan_is_found_with_blocks(folder: Path) -> None:
    """A module that spoils its numbers is found as it ran, in blocks and in float32."""
    model = SafeAutoModel.from_pretrained(folder, plan=plan_for(folder, blocks=True))
    with fault(model, "model.layers.1.mlp.down_proj", "nan", call=0):
        tokens(model)
    (event,) = report(model).events
    assert event.module == "model.layers.1.mlp.down_proj"


def test_gradients(folder: Path) -> None:
    """With gradients on, the same parameters get them, whatever the layout."""
    model = SafeAutoModel.from_pretrained(folder, plan=plan_for(folder, blocks=True))
    model(ids(16), labels=ids(16)).loss.backward()
    exact = plain(folder, "float32")
    exact(ids(16), labels=ids(16)).loss.backward()
    mine, theirs = model.model.layers[0].mlp.up_proj.weight.grad, exact.model.layers[0].mlp.up_proj.weight.grad
    assert torch.nn.functional.cosine_similarity(mine.float().flatten(), theirs.flatten(), 0) > 0.99


def test_copies_are_plain(folder: Path) -> None:
    """A deep copy is guarded, and has plain modules of its own."""
    model = SafeAutoModel.from_pretrained(folder, plan=plan_for(folder, blocks=True))
    copied = copy.deepcopy(model)
    assert type(copied.lm_head) is torch.nn.Linear
    assert len(tokens(copied)) == 24


def test_mixed_weights_run_under_autocast(folder: Path) -> None:
    """Where weights of two dtypes meet in many modules, steps run under torch.autocast, and no weight is changed."""
    model = guard(plain(folder))
    for layer in model.model.layers:
        layer.self_attn.o_proj.float()
        layer.mlp.down_proj.float()
    with torch.inference_mode():
        logits = model(ids(16)).logits
    assert [event.remedy for event in report(model).events] == ["torch.autocast"]
    assert {one.dtype for one in model.parameters()} == {torch.bfloat16, torch.float32}
    exact = plain(folder, "float32")(ids(16)).logits
    assert ((logits - exact).square().mean().sqrt() / exact.square().mean().sqrt()) < 0.05
    assert len(tokens(model)) == 24
    assert len(report(model).events) == 1


@pytest.mark.parametrize(
    ("kwargs", "rows"),
    [
        pytest.param({"input_ids": torch.ones(2, 5, dtype=torch.int64)}, 10, id="tokens"),
        pytest.param({"inputs_embeds": torch.ones(2, 5, 32)}, 10, id="embeddings"),
        pytest.param({"input_ids": torch.ones(1, 1), "attention_mask": torch.ones(1, 900)}, 1, id="masks-are-beside"),
        pytest.param({"pixel_values": torch.ones(1, 3, 8, 8)}, 24, id="pixels"),
        pytest.param({"input_values": torch.ones(2, 640)}, 1280, id="wave"),
        pytest.param({"input_values": torch.ones(2, 1, 640)}, 1280, id="wave-with-a-channel"),
        pytest.param({"inputs_embeds": torch.ones(2, 1, 640)}, 2, id="one-embedding"),
        pytest.param({}, 0, id="nothing"),
    ],
)
def test_rows(kwargs: dict[str, Any], rows: int) -> None:
    """The rows of a call are the positions in its largest input."""
    assert rows_of((), kwargs) == rows
