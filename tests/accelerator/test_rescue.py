"""A rescue on devices: found, proved and saved as on the CPU, over two devices, and where memory is short."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerator.rehearsal import Rehearsal
from engineered import engineered, prompts, saved
from mini_hub import MiniHub
from publishing.client import connect
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM, OPTForCausalLM

from safe_dtype import SafeAutoModelForCausalLM, guard, plan_of, report
from safe_dtype.commands.rescue import rescue
from safe_dtype.commands.rescue_recipe import recipe_of
from safe_dtype.devices import facts_of
from safe_dtype.facts import FLOAT16, Rescale
from safe_dtype.facts.recipe import recipe_path
from safe_dtype.loading import Request, checkpoint_for
from safe_dtype.loading.trials.float16 import half_of
from safe_dtype.models.blocks import block_names
from safe_dtype.planning import make_plan
from safe_dtype.rescaling import fold_in, gauges_for, rescaled_of
from safe_dtype.rescaling.folding.fold import Fold
from safe_dtype.rescaling.raising import raise_checked

PROMPT = prompts("llama", count=1, tokens=24, seed=3)[0]["input_ids"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama in bfloat16 whose hidden states leave float16's range."""
    return saved("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def truth() -> Tensor:
    """What it says in float32."""
    return logits(engineered("llama"), "cpu")


@pytest.fixture(scope="module")
def residual() -> Rescale:
    """What makes its hidden states smaller."""
    gauges = gauges_for(engineered("llama")).gauges
    return Rescale(tuple((gauge, 8) for gauge in gauges if gauge.name == "residual"))


def logits(model: Any, device: Any) -> Tensor:
    """Return the logits of a prompt that makes it overflow, on the host."""
    with torch.inference_mode():
        result: Tensor = model(PROMPT.to(device)).logits
    return result.float().cpu()


def over_two(rehearsal: Rehearsal) -> dict[str, Any]:
    """Return a device map with the later blocks on the second device."""
    names = list(block_names(engineered("llama")))
    first = {"model.embed_tokens", "model.rotary_emb", "lm_head", *names[: len(names) // 2]}
    return {name: rehearsal.device(int(name not in first)) for name in (*first, *names, "model.norm")}


def load(folder: Path, device_map: Any) -> Any:
    """Order float16."""
    return SafeAutoModelForCausalLM.from_pretrained(folder, dtype="float16", device_map=device_map)


def test_a_recipe_of_somebody_else(
    rehearsal: Rehearsal, folder: Path, truth: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """The first load of the next owner measures nothing: the recipe is found, proved on the device, and right."""
    outcome = rescue(str(folder), device=str(rehearsal.device()), revision=None, text=None, max_drift=0.02)
    recipe = recipe_of(outcome, revision=None)
    file = tmp_path / "recipes" / recipe_path(recipe.weights[0])
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(recipe.to_dict()))
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "of the next owner"))
    caplog.clear()
    with MiniHub({"org/recipes": tmp_path / "recipes"}).running() as hub:
        connect(monkeypatch, hub, tmp_path / "client")
        for device_map in (str(rehearsal.device()), over_two(rehearsal)):
            model = SafeAutoModelForCausalLM.from_pretrained(
                folder, dtype="float16", device_map=device_map, policy="recipes=org/recipes"
            )
            assert plan_of(model).recipe
            torch.testing.assert_close(logits(model, rehearsal.device()), truth, rtol=0, atol=0.05)
    assert "measuring whether" not in caplog.text


def test_first_and_later_loads(
    rehearsal: Rehearsal, folder: Path, truth: Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first load over two devices measures on one; the next uses that; what is saved are the bits of the files."""
    load(folder, over_two(rehearsal))
    assert "measured in float16: rescaled exactly" in caplog.text
    caplog.clear()
    model = load(folder, over_two(rehearsal))
    assert "measured in float16" not in caplog.text
    assert {one.device for one in model.parameters()} == {rehearsal.device(0), rehearsal.device(1)}
    torch.testing.assert_close(logits(model, rehearsal.device()), truth, rtol=0, atol=0.05)
    assert report(model).events == ()
    model.save_pretrained(tmp_path / "saved")
    before, after = (load_file(one / "model.safetensors") for one in (folder, tmp_path / "saved"))
    assert before.keys() == after.keys()
    assert all(torch.equal(value.view(torch.int16), after[name].view(torch.int16)) for name, value in before.items())
    assert_raised_and_lowered(model, logits(model, rehearsal.device()))


def assert_raised_and_lowered(model: Any, expected: Tensor) -> None:
    """Assert that the check of a raise runs on both devices, and that every weight comes back bit for bit."""
    rescaled = rescaled_of(model)
    assert rescaled is not None
    before = {name: value.detach().cpu() for name, value in model.named_parameters()}
    assert raise_checked(model, rescaled, 3, 0.02) is None
    weight = model.model.layers[3].self_attn.o_proj.weight
    assert not torch.equal(weight.cpu(), before["model.layers.3.self_attn.o_proj.weight"])
    torch.testing.assert_close(logits(model, next(model.parameters()).device), expected, rtol=0, atol=0.05)
    rescaled.raise_bits(-3)
    assert all(torch.equal(value.cpu(), before[name]) for name, value in model.named_parameters())


def a_token(rehearsal: Rehearsal, model: Any) -> tuple[float, float]:
    """Return the kernels and the waits of one more token of a generation."""
    counts = []
    for tokens in (4, 8, 16):
        with rehearsal.counting() as counting:
            length = {"max_new_tokens": tokens, "min_new_tokens": tokens}
            model.generate(PROMPT.to(rehearsal.device()), do_sample=False, pad_token_id=0, **length)
        counts.append(counting.counts)
    difference = counts[2] - counts[1]
    return difference.kernels / 8, difference.syncs / 8


def test_what_a_token_costs(rehearsal: Rehearsal, folder: Path) -> None:
    """As many waits as plain float16 has, and a few kernels for each block that is looked at."""
    place = {"": rehearsal.device()}
    kernels, syncs = a_token(rehearsal, load(folder, place))
    plain = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float16, device_map=place)
    plain_kernels, plain_syncs = a_token(rehearsal, plain)
    blocks = len(plain.model.layers)
    assert syncs == plain_syncs == 1
    assert kernels - plain_kernels <= 3 * blocks + 4


@pytest.mark.filterwarnings("ignore:float16 was asked for")
def test_where_weights_are_offloaded(rehearsal: Rehearsal, folder: Path, truth: Tensor) -> None:
    """They would have to be rescaled every time that they are brought in: it goes on in float32, and says why."""
    device_map = {**over_two(rehearsal), "model.layers.3": "cpu"}
    with pytest.warns(match="weights that are offloaded"):
        model = load(folder, device_map)
    assert model.dtype == torch.float32
    torch.testing.assert_close(logits(model, rehearsal.device()), truth, rtol=0, atol=1e-3)


def test_trial_where_the_device_has_no_room(
    rehearsal: Rehearsal, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is measured in main memory then, to the same result, and remembered as any other."""
    request = Request(str(folder), {"dtype": "float16", "device_map": str(rehearsal.device())})
    checkpoint = checkpoint_for(request)
    device = facts_of(str(rehearsal.device()))
    plan = make_plan(device, checkpoint, ordered=FLOAT16)
    rehearsal.leave_free(1_000_000)
    half = half_of(plan, request, device, checkpoint, measure=True)
    assert half is not None
    assert half.rescale is not None
    assert "measuring it in main memory" in caplog.text
    assert half_of(plan, request, device, checkpoint, measure=False) == half


def test_where_nowhere_is_room(rehearsal: Rehearsal, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is remembered of the checkpoint: the next load asks again."""
    request = Request(str(folder), {"dtype": "float16", "device_map": str(rehearsal.device())})
    checkpoint = checkpoint_for(request)
    device = facts_of(str(rehearsal.device()))
    plan = make_plan(device, checkpoint, ordered=FLOAT16)
    rehearsal.leave_free(100_000)
    monkeypatch.setattr("safe_dtype.loading.trials.float16.main_memory_for", lambda *_: None)
    half = half_of(plan, request, device, checkpoint, measure=True)
    assert half is not None
    assert "no room" in half.problem
    assert half_of(plan, request, device, checkpoint, measure=False) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_folding_where_memory_ends(rehearsal: Rehearsal, residual: Rescale, dtype: torch.dtype) -> None:
    """Wherever a device runs out of memory meanwhile, no weight and no number is left moved."""
    model = engineered("llama").to(dtype).to(rehearsal.device())
    before = {name: value.detach().cpu() for name, value in model.named_parameters()}
    eps = model.model.norm.variance_epsilon
    ended = 0
    for free in (0, 10_000, 60_000, 120_000, 2**20):
        fold = Fold(model)
        rehearsal.leave_free(free)
        try:
            fold.move_to(residual)
        except torch.OutOfMemoryError:
            ended += 1
        rehearsal.limit(2**34)
        fold.undo()
        assert model.model.norm.variance_epsilon == eps
        assert all(torch.equal(value.cpu(), before[name]) for name, value in model.named_parameters())
    assert 2 <= ended < 5


def test_bytes_that_folding_takes(rehearsal: Rehearsal, residual: Rescale) -> None:
    """Copies of one weight at a time, not of all that are moved, for a proof that is as strict."""
    model = engineered("llama").bfloat16().to(rehearsal.device())
    moved = sum(
        one.numel() * one.element_size()
        for name, one in model.named_parameters()
        if name.endswith(("o_proj.weight", "down_proj.weight"))
    )
    rehearsal.backend.reset_peak_memory_stats()
    before = rehearsal.figure("allocated")
    _, effect = fold_in(model, residual)
    assert effect.bitwise
    assert rehearsal.figure("peak_allocated") - before < 0.8 * moved


def test_layers_scaled_by_their_inputs_over_two_devices(rehearsal: Rehearsal, tmp_path: Path) -> None:
    """Where no rescaling reaches, float16 is kept there as well: below accelerate's hooks."""
    source = saved("opt_interior", tmp_path / "opt")
    whole = engineered("opt_interior")
    batch = prompts("opt_interior", count=1, tokens=24, seed=3)[0]["input_ids"]
    places = {name: rehearsal.device(number // 2) for number, name in enumerate(block_names(whole))}
    inner = "model.decoder"
    places |= {f"{inner}.{name}": rehearsal.device() for name in ("embed_tokens", "embed_positions")}
    places |= {f"{inner}.final_layer_norm": rehearsal.device(1), "lm_head": rehearsal.device()}
    model = guard(OPTForCausalLM.from_pretrained(source, dtype=torch.float16, device_map=places))
    with torch.inference_mode():
        result, expected = model(batch.to(rehearsal.device())).logits.cpu().float(), whole(batch).logits
    torch.testing.assert_close(result, expected, rtol=0, atol=0.05)
    assert [event.remedy for event in report(model).events] == ["2 linear layers scaled by what goes in"]
    assert model.dtype == torch.float16
