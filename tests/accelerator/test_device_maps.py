"""Loading onto devices: what is planned, what has room, and where the weights come out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerator.rehearsal import Rehearsal

from safe_dtype import BFLOAT16, FLOAT32, SafeAutoModelForCausalLM, patched, plan_of
from safe_dtype.devices import facts_of, memory_of
from safe_dtype.errors import NoSafeDtypeError, SafeDtypeWarning
from safe_dtype.facts import MemoryFacts

IDS = torch.tensor([[471, 493, 293]])  # "The argument is": float32 and bfloat16 go on alike
# tiny-qwen3: 4.2 MB of weights in bfloat16 and 8.5 MB in float32; with cache and activations 7.8 and 15.7 MB.
FOR_BF16, FOR_FP32 = 8_500_000, 17_000_000


@pytest.fixture
def folder() -> str:
    """A trained model, saved in bfloat16."""
    return str(Path(__file__).parents[2] / "examples/tiny-qwen3")


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    """What the model answers on the CPU in float32."""
    model = transformers.AutoModelForCausalLM.from_pretrained("examples/tiny-qwen3", dtype=torch.float32)
    return answer(model)


def answer(model: Any) -> torch.Tensor:
    """Return its tokens, on the CPU."""
    start = model.device if model.device.type != "meta" else torch.device("musa:0")
    return model.generate(IDS.to(start), max_new_tokens=4, do_sample=False).cpu()


def places(model: Any) -> Counter[str]:
    """Return how many weights are where; those that are brought in count as "meta"."""
    return Counter(str(weight.device) for weight in model.parameters())


@pytest.mark.parametrize(
    ("device_map", "device"),
    [
        pytest.param("musa:1", "musa:1", id="name"),
        pytest.param("musa", "musa:0", id="kind"),
        pytest.param(1, "musa:1", id="number"),
        pytest.param(torch.device("musa", 1), "musa:1", id="object"),
        pytest.param({"": 1}, "musa:1", id="table"),
    ],
)
def test_one_device(rehearsal: Rehearsal, folder: str, tokens: torch.Tensor, device_map: Any, device: str) -> None:
    """Whichever way it is named, that device is planned for, and the model comes out there."""
    model = SafeAutoModelForCausalLM.from_pretrained(folder, device_map=device_map)
    assert plan_of(model).device.partition(":")[0] == "musa"
    assert set(places(model)) == {device}
    assert torch.equal(answer(model), tokens)
    assert rehearsal.figure("allocated", 1 - int(device[-1])) == 0


@pytest.mark.parametrize("device_map", ["auto", "balanced", "balanced_low_0", "sequential"])
def test_spread_goes_by_the_accelerators(
    rehearsal: Rehearsal, folder: str, tokens: torch.Tensor, device_map: str
) -> None:
    """Where bfloat16 fits on the accelerators and float32 does not, main memory is no reason to plan float32."""
    limits = {0: FOR_BF16 // 2, 1: FOR_BF16 // 2, "cpu": 10**9}
    model = SafeAutoModelForCausalLM.from_pretrained(folder, device_map=device_map, max_memory=limits)
    plan = plan_of(model)
    assert (plan.storage, plan.device, plan.device_map, plan.warnings) == (BFLOAT16, "musa:0,musa:1", None, ())
    assert "meta" not in places(model)
    assert torch.equal(answer(model), tokens)


def test_max_memory_names_what_is_used(rehearsal: Rehearsal, folder: str) -> None:
    """Accelerate fills only what `max_memory` names, so no other device is planned for."""
    for limits, dtype in (({1: FOR_FP32}, FLOAT32), ({0: 0, 1: FOR_BF16}, BFLOAT16)):
        spread: dict[str, Any] = {"device_map": "auto", "max_memory": limits}
        plan = plan_of(SafeAutoModelForCausalLM.from_pretrained(folder, policy="prefer=fidelity", **spread))
        assert (plan.device, plan.storage) == ("musa:1", dtype)


def test_spread_on_its_own(rehearsal: Rehearsal, folder: str, tokens: torch.Tensor) -> None:
    """What one device has no room for is planned for all of them, each of them measured, and says so."""
    rehearsal.leave_free(FOR_BF16 - 3_000_000)
    with pytest.warns(SafeDtypeWarning, match="needs 7.84 MB, 5.5 MB are free"):
        model = SafeAutoModelForCausalLM.from_pretrained(folder)
    plan = plan_of(model)
    assert (plan.device, plan.device_map, plan.storage) == ("musa:0,musa:1", "auto", BFLOAT16)
    assert set(places(model)) == {"musa:0", "musa:1"}
    assert torch.equal(answer(model), tokens)


def test_main_memory_and_disk(rehearsal: Rehearsal, folder: str, tokens: torch.Tensor, tmp_path: Path) -> None:
    """Parts of a table are planned for together, wherever they lie, and run as one."""
    rehearsal.leave_free(FOR_BF16, 0)
    table: dict[str, Any] = dict.fromkeys(["model.embed_tokens", "lm_head", "model.norm", "model.rotary_emb"], 0)
    for number, place in enumerate(["disk", "cpu", 1, torch.device("musa:1")]):
        table[f"model.layers.{number}"] = place
    model = SafeAutoModelForCausalLM.from_pretrained(folder, device_map=table, offload_folder=tmp_path)
    assert plan_of(model).device == "musa:0,musa:1"
    assert set(places(model)) == {"musa:0", "musa:1", "meta"}  # what is elsewhere is brought in
    assert torch.equal(answer(model), tokens)


def test_a_table_that_has_no_room(rehearsal: Rehearsal, folder: str) -> None:
    """The place that is filled first decides, whatever is free elsewhere: smaller where that fits, with a warning else."""
    rehearsal.leave_free(FOR_BF16, 1)
    assert plan_of(SafeAutoModelForCausalLM.from_pretrained(folder, device_map={"": 1})).storage == BFLOAT16
    rehearsal.leave_free(3_000_000, 1)
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(SafeDtypeWarning, match="3 MB have room as device_map"):
        SafeAutoModelForCausalLM.from_pretrained(folder, device_map={"": 1})


def test_patched_and_in_pipelines(rehearsal: Rehearsal, folder: str) -> None:
    """Plain code that moves the model, or names the device to a pipeline, is planned for the accelerator."""
    with patched(tell="nothing"):
        moved = transformers.AutoModelForCausalLM.from_pretrained(folder).to("musa:1")
        pipes = [
            transformers.pipeline("text-generation", folder, **where)
            for where in ({"device": 0}, {"device": "musa:1"}, {"device_map": "auto"})
        ]
    models = [moved, *(pipe.model for pipe in pipes)]
    assert [plan_of(model).device for model in models] == ["musa:0", "musa:0", "musa:1", "musa:0,musa:1"]
    assert [sorted(places(model)) for model in models] == [["musa:1"], ["musa:0"], ["musa:1"], ["musa:0", "musa:1"]]
    texts = {pipe("The argument", max_new_tokens=4, do_sample=False)[0]["generated_text"] for pipe in pipes}
    assert len(texts) == 1


@pytest.mark.parametrize("device", [1, "musa:1", torch.device("musa:1")], ids=repr)
def test_a_pipeline_is_planned_for_its_device(rehearsal: Rehearsal, folder: str, device: Any) -> None:
    """What its device lacks decides, and its memory: it stays whole, as the pipeline moves it."""
    rehearsal.insert("V100", device=1)
    with patched(tell="nothing"):
        assert plan_of(transformers.pipeline("text-generation", folder, device=0).model).storage == BFLOAT16
        pipe = transformers.pipeline("text-generation", folder, device=device)
        assert plan_of(pipe.model).storage != BFLOAT16
        assert len(pipe("The argument", max_new_tokens=2)) == 1
        rehearsal.leave_free(3_000_000, 1)
        with pytest.raises(torch.OutOfMemoryError), pytest.warns(SafeDtypeWarning, match="3 MB are free"):
            transformers.pipeline("text-generation", folder, device=device)


@pytest.mark.parametrize("device", [-1, "cpu"])
def test_a_pipeline_on_the_cpu(rehearsal: Rehearsal, folder: str, device: Any) -> None:
    """Beside accelerators it is planned for the CPU, where it stays."""
    with patched(tell="nothing"):
        model = transformers.pipeline("text-generation", folder, device=device).model
    assert (plan_of(model).device, *places(model)) == ("cpu", "cpu")


def test_sentences_are_planned_for_their_device(rehearsal: Rehearsal, folder: str) -> None:
    """SentenceTransformer names a device that `from_pretrained` never sees."""
    from sentence_transformers import SentenceTransformer  # takes seconds

    with patched(tell="nothing"):
        models = [SentenceTransformer(folder, device=device)[0].auto_model for device in ("musa:1", "cpu")]
    assert [(plan_of(model).device, *places(model)) for model in models] == [("musa:1", "musa:1"), ("cpu", "cpu")]


def test_moved_to_where_nobody_planned_for(rehearsal: Rehearsal, folder: str, tokens: torch.Tensor) -> None:
    """A model that was planned for the CPU and runs on an accelerator says so, once; a card of the same kind is none."""
    model = SafeAutoModelForCausalLM.from_pretrained(folder, device_map="cpu").to("musa:0")
    with pytest.warns(SafeDtypeWarning, match=r"planned for .* \(cpu\) and runs on musa:0.*Next: load it with"):
        assert torch.equal(answer(model), tokens)
    assert torch.equal(answer(model), tokens)
    assert torch.equal(answer(SafeAutoModelForCausalLM.from_pretrained(folder).to("musa:1")), tokens)


def test_the_device_itself_is_measured(rehearsal: Rehearsal, folder: str) -> None:
    """A probe runs on the device that it is of, once, and leaves nothing there."""
    rehearsal.is_measured = True
    little: dict[str, Any] = {"dtypes": (BFLOAT16, FLOAT32), "widths": ((256, 256),), "ops": ("matmul",)}
    rehearsal.forbid(torch.bfloat16, device=1)
    with rehearsal.counting(1) as measured, rehearsal.counting(0) as other:
        facts = facts_of("musa:1", **little)
    assert measured.counts.kernels > 10
    assert other.counts.kernels == 0
    assert not facts.verdict(BFLOAT16).runs
    assert facts.verdict(FLOAT32).runs
    with rehearsal.counting() as again:
        assert facts_of("musa:1", **little).verdicts == facts.verdicts
    assert again.counts.kernels == 0
    assert rehearsal.figure("allocated", 1) == 0


def test_a_full_device_is_measured_later(rehearsal: Rehearsal, folder: str) -> None:
    """What could not be measured for want of memory says so, is no verdict, and is not remembered."""
    rehearsal.is_measured = True
    rehearsal.set_devices(1)
    rehearsal.leave_free(100_000)
    with pytest.raises(
        NoSafeDtypeError, match=r"nobody has measured float32 on \w+ accelerator: no memory left for it"
    ):
        SafeAutoModelForCausalLM.from_pretrained(folder)
    rehearsal.limit(16 << 30)
    assert SafeAutoModelForCausalLM.from_pretrained(folder) is not None


@pytest.mark.parametrize(
    "names",
    [
        ("memory_reserved",),
        ("memory_allocated",),
        ("mem_get_info",),
        ("mem_get_info", "memory_reserved", "memory_stats"),
    ],
    ids=" and ".join,
)
def test_backends_that_tell_little(rehearsal: Rehearsal, names: tuple[str, ...]) -> None:
    """Memory is what torch tells of the device, whatever its plugin has left out."""
    rehearsal.withhold(*names)
    assert memory_of("musa:1") == MemoryFacts(16 << 30, 16 << 30, "device")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_predicted_peak(rehearsal: Rehearsal, folder: str, dtype: str) -> None:
    """The bytes of a plan are those of its workload at the peak, a tenth at most too many; a load takes the weights alone."""
    before = rehearsal.figure("allocated")
    rehearsal.backend.reset_peak_memory_stats(0)
    model = SafeAutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map={"": 0})
    plan = plan_of(model)
    cost = next(one.cost for one in plan.decisions if str(one.candidate) == dtype)
    assert rehearsal.figure("peak_allocated") - before <= cost.weight_bytes * 1.01
    work = plan.policy.workload
    prompt = torch.arange(work.prompt_tokens, device="musa:0")[None] % 2000
    model.generate(prompt, max_new_tokens=work.new_tokens, min_new_tokens=work.new_tokens, do_sample=False)
    assert 0.9 < (rehearsal.figure("peak_allocated") - before) / cost.bytes <= 1
