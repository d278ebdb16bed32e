"""A model is saved in the dtype that its checkpoint was saved in, whatever it was loaded in, unless the user says otherwise."""

from __future__ import annotations

import copy
import gc
import json
import logging
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors
import torch
import transformers
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn

import safe_dtype
from safe_dtype import Policy, SafeAutoModel, SafeDtypeWarning, guard, plan_of, unguard
from safe_dtype.models.saving.saved_dtype import SavedDtype, config_saying

Saved = Callable[..., Path]
FLOATS = {"BF16": "bfloat16", "F32": "float32", "F16": "float16"}


def dtypes_in(folder: Path) -> set[str]:
    """Return the dtypes of the tensors in a folder, and what its config claims of itself and of its parts."""
    dtypes = set()
    for file in folder.glob("*.safetensors"):
        with safetensors.safe_open(file, "pt") as tensors:
            dtypes |= {FLOATS[tensors.get_slice(name).get_dtype()] for name in tensors.keys()}  # noqa: SIM118
    claims = (
        list(_claims(json.loads((folder / "config.json").read_text()))) if (folder / "config.json").exists() else []
    )
    return dtypes | set(claims)


def _claims(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        yield from (config[name] for name in ("dtype", "torch_dtype") if isinstance(config.get(name), str))
        for part in config.values():
            yield from _claims(part)


def trained(model: Any) -> Any:
    """Take a step of training."""
    ids = torch.arange(3, 10)[None]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    return model.eval()


def loaded(folder: Path, **arguments: Any) -> Any:
    """Load in a patched program; what is said there is tested elsewhere."""
    with warnings.catch_warnings(), safe_dtype.patched(arguments.pop("policy", "auto")):
        warnings.simplefilter("ignore", SafeDtypeWarning)
        return transformers.AutoModelForCausalLM.from_pretrained(folder, **arguments)


@pytest.mark.parametrize("is_trained", [True, False])
def test_same_bytes_as_before(
    is_trained: bool, saved: Saved, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A bfloat16 checkpoint that runs in float32 is saved in bfloat16, with one line in the log; in memory it stays."""
    model = loaded(saved())
    assert model.dtype == torch.float32
    if is_trained:
        trained(model)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with caplog.at_level(logging.INFO, "safe_dtype"):
        model.save_pretrained(tmp_path)
    assert [one for one in caplog.messages if "saved in bfloat16" in one] == [caplog.messages[-1]]
    assert dtypes_in(tmp_path) == {"bfloat16"}
    assert model.dtype == model.config.dtype == torch.float32
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        assert torch.equal(tensor, weights[name].bfloat16())
    if not is_trained:
        assert (tmp_path / "model.safetensors").read_bytes() == (saved() / "model.safetensors").read_bytes()


def test_composite(saved: Saved, tmp_path: Path) -> None:
    """Of a composite config every part says so."""
    with safe_dtype.patched():
        model = transformers.LlavaForConditionalGeneration.from_pretrained(saved("llava"))
    before = model.config.to_dict()
    model.save_pretrained(tmp_path)
    assert (model.dtype, dtypes_in(tmp_path)) == (torch.float32, {"bfloat16"})
    assert model.config.to_dict()["text_config"] == before["text_config"]


@pytest.mark.parametrize("name", ["t5", "mixtral", "whisper", "mamba"])
def test_every_architecture(name: str, saved: Saved, tmp_path: Path) -> None:
    """Weights that transformers merges, ties or keeps in float32 come back as they were."""
    with safe_dtype.patched("ladder=fp32>bf16"):
        model = SafeAutoModel.from_pretrained(saved(name), policy="ladder=fp32>bf16")
    assert model.dtype == torch.float32
    model.save_pretrained(tmp_path)
    before, after = (load_file(folder / "model.safetensors") for folder in (saved(name), tmp_path))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)


def test_shards(saved: Saved, tmp_path: Path) -> None:
    """Shards are counted in what is written."""
    model = loaded(saved())
    model.save_pretrained(tmp_path / "ours", max_shard_size="20KB")
    plain = transformers.AutoModelForCausalLM.from_pretrained(saved())
    plain.save_pretrained(tmp_path / "plain", max_shard_size="20KB")
    assert dtypes_in(tmp_path / "ours") == {"bfloat16"}
    names = [sorted(one.name for one in (tmp_path / which).iterdir()) for which in ("ours", "plain")]
    assert names[0] == names[1]
    assert len(names[0]) > 4


CHOICES: dict[str, Callable[[Path], Any]] = {
    "dtype": lambda folder: loaded(folder, dtype="float32"),
    "config": lambda folder: loaded(folder, config=_with_dtype(folder)),
    "float": lambda folder: loaded(folder).float(),
    "to": lambda folder: loaded(folder).to(torch.float32),
    "to-with-device": lambda folder: loaded(folder).to("cpu", torch.float32),
    "to-like": lambda folder: loaded(folder).to(torch.zeros(1)),
    "type": lambda folder: loaded(folder).type(torch.float32),
    "of-what-is-around": lambda folder: nn.Sequential(loaded(folder)).float()[0],
    "policy": lambda folder: loaded(folder, policy="save=as-is"),
    "ladder": lambda folder: loaded(folder, policy="ladder=fp32"),
}


def _with_dtype(folder: Path) -> Any:
    config = transformers.AutoConfig.from_pretrained(folder)
    config.dtype = torch.float32
    return config


@pytest.mark.parametrize("choice", CHOICES)
def test_the_user_says(choice: str, saved: Saved, tmp_path: Path) -> None:
    """A dtype that the user chose is the one that is saved."""
    trained(CHOICES[choice](saved())).save_pretrained(tmp_path)
    assert dtypes_in(tmp_path) == {"float32"}


def test_no_choice(saved: Saved, tmp_path: Path) -> None:
    """To move a model, to freeze it and to copy it say nothing of dtypes."""
    model = copy.deepcopy(loaded(saved()).to("cpu").requires_grad_(requires_grad=True).cpu())
    gc.collect()  # the copy alone is left
    trained(model).save_pretrained(tmp_path / "copy")
    assert dtypes_in(tmp_path / "copy") == {"bfloat16"}
    unguard(model)
    model.save_pretrained(tmp_path / "unguarded")
    assert dtypes_in(tmp_path / "unguarded") == {"bfloat16"}


def test_one_part_cast(saved: Saved, tmp_path: Path) -> None:
    """A module that the user casts is saved as he cast it, the rest as the checkpoint was."""
    model = loaded(saved())
    model.model.layers[0].mlp.float()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert {name for name, tensor in tensors.items() if tensor.dtype == torch.float32} == {
        f"model.layers.0.mlp.{one}_proj.weight" for one in ("up", "down", "gate")
    }


def test_part_alone(saved: Saved, tmp_path: Path) -> None:
    """The base of a model, saved alone, is saved in the same dtype."""
    trained(loaded(saved())).model.save_pretrained(tmp_path)
    assert dtypes_in(tmp_path) == {"bfloat16"}


def test_ordered(saved: Saved, tmp_path: Path) -> None:
    """A model that was ordered in float16 and has left it is saved in float16."""
    from safe_dtype.models.recast import recast

    model = loaded(saved("qwen3", "float16"), dtype="float16")
    recast(model, {torch.float16}, torch.float32)
    model.save_pretrained(tmp_path)
    assert dtypes_in(tmp_path) == {"float16"}


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_ordered_narrower(is_tied: bool, saved: Saved, tmp_path: Path) -> None:
    """Where a model has left an ordered dtype that holds less than its files, weights and config say one dtype."""
    from safe_dtype.models.recast import recast

    plain = transformers.AutoModelForCausalLM.from_pretrained(saved("qwen3", "bfloat16"), dtype=torch.bfloat16)
    config = plain.config
    config.tie_word_embeddings = is_tied
    type(plain)(config).bfloat16().save_pretrained(tmp_path / "model")
    model = loaded(tmp_path / "model", dtype="float16")
    recast(model, {torch.float16}, torch.float32)
    model.save_pretrained(tmp_path / "saved")
    assert len(dtypes_in(tmp_path / "saved")) == 1


def test_float16_is_not_overrun(saved: Saved, tmp_path: Path) -> None:
    """A weight that training took beyond float16 stays in float32, for infinity is no weight."""
    model = loaded(saved("qwen3", "float16"))
    assert model.dtype == torch.float32
    model.model.norm.weight.data[0] = 1e6
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert (tensors["model.norm.weight"].dtype, tensors["model.norm.weight"][0]) == (torch.float32, 1e6)
    assert tensors["model.embed_tokens.weight"].dtype == torch.float16


def test_float32_in_the_files(saved: Saved, tmp_path: Path) -> None:
    """What the files hold in float32 among bfloat16 stays in float32."""
    folder = tmp_path / "mixed"
    loaded(saved()).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.linspace(0.5, 1.5, 32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    loaded(folder).save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert torch.equal(again["model.norm.weight"], tensors["model.norm.weight"])
    assert {one.dtype for name, one in again.items() if name != "model.norm.weight"} == {torch.bfloat16}


def test_rounded_on_loading(saved: Saved, tmp_path: Path) -> None:
    """A float32 checkpoint that runs in bfloat16 is saved in float32: bit for bit where nobody trained it."""
    small = SafeAutoModel.from_pretrained(saved("qwen3", "float32"), policy="prefer=memory")
    plan = replace(plan_of(small), policy=Policy())  # as where the drift was measured, and is within the limit
    model = SafeAutoModel.from_pretrained(saved("qwen3", "float32"), plan=plan)
    assert model.dtype == torch.bfloat16
    model.model.norm.weight.data[0] = 5
    model.save_pretrained(tmp_path)
    before, after = (load_file(folder / "model.safetensors") for folder in (saved("qwen3", "float32"), tmp_path))
    assert {one.dtype for one in after.values()} == {torch.float32}
    assert after["model.norm.weight"][0] == 5
    assert all(torch.equal(before[name], after[name]) for name in before if name != "model.norm.weight")
    small.save_pretrained(tmp_path / "small")
    assert dtypes_in(tmp_path / "small") == {"bfloat16"}


def test_plain_stays_plain(saved: Saved, tmp_path: Path) -> None:
    """A model in its checkpoint's own dtype is saved by transformers alone."""
    model = loaded(saved("qwen3", "float32"))
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (
        saved("qwen3", "float32") / "model.safetensors"
    ).read_bytes()
    with pytest.raises(TypeError):
        model.save_pretrained()


def test_positional(saved: Saved, tmp_path: Path) -> None:
    """A state dict that is passed is cast, wherever it stands in the call."""
    model = loaded(saved())
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "position", True, state)
    model.save_pretrained(tmp_path / "name", state_dict=state)
    for folder in (tmp_path / "position", tmp_path / "name"):
        tensors = load_file(folder / "model.safetensors")
        assert torch.equal(tensors["model.norm.weight"], state["model.norm.weight"].bfloat16())


def test_pickled(saved: Saved) -> None:
    """A pickled model can be read without safe_dtype, and is saved as it is."""
    text = pickle.dumps(loaded(saved()))
    assert b"SavedDtype" not in text
    assert not any(isinstance(one, SavedDtype) for one in pickle.loads(text).__dict__.values())


def arguments(folder: Path, **more: Any) -> transformers.TrainingArguments:
    """Return those of a short training on a CPU."""
    return transformers.TrainingArguments(folder, report_to=[], use_cpu=True, disable_tqdm=True, seed=0, **more)


ROWS = [{"input_ids": [3, 4, 5, number], "labels": [3, 4, 5, number]} for number in range(6, 18)]


def test_trainer(saved: Saved, tmp_path: Path) -> None:
    """A Trainer's checkpoints and what it saves at the end are in the saved dtype, and it resumes from them."""
    steps: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 2}
    trainer = transformers.Trainer(
        loaded(saved()), arguments(tmp_path / "run", max_steps=4, **steps), train_dataset=ROWS
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "end"))
    for folder in (tmp_path / "run" / "checkpoint-2", tmp_path / "run" / "checkpoint-4", tmp_path / "end"):
        assert dtypes_in(folder) == {"bfloat16"}
    model = loaded(saved())
    resumed = transformers.Trainer(model, arguments(tmp_path / "run", max_steps=4, **steps), train_dataset=ROWS)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert (resumed.state.global_step, model.dtype) == (4, torch.float32)
    end, again = load_file(tmp_path / "end" / "model.safetensors"), trainer.model.state_dict()
    for name, tensor in model.state_dict().items():
        assert (tensor - again[name]).abs().max() < 1e-2
    assert {one.dtype for one in end.values()} == {torch.bfloat16}


@pytest.mark.parametrize("prepared", [True, False])
def test_accelerate(prepared: bool, saved: Saved, tmp_path: Path) -> None:
    """Accelerate's `save_model` writes the saved dtype; `save_state` writes what training goes on from."""
    accelerator = Accelerator(cpu=True)
    model = trained(loaded(saved()))
    model = accelerator.prepare(model) if prepared else model
    accelerator.save_model(model, tmp_path / "model")
    assert dtypes_in(tmp_path / "model") == {"bfloat16"}
    assert {one.dtype for one in accelerator.get_state_dict(model).values()} == {torch.float32}
    if prepared:
        accelerator.save_state(str(tmp_path / "state"))
        assert dtypes_in(tmp_path / "state") == {"float32"}


@pytest.mark.needs("adapter_loader")
def test_adapters(saved: Saved, tmp_path: Path) -> None:
    """Adapters are saved as PEFT makes them, and a model that they are merged into as its checkpoint was."""
    lora = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    plain = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(saved()), lora)
    ours = peft.get_peft_model(loaded(saved()), lora)
    for name, model in (("plain", plain), ("ours", ours)):
        model.save_pretrained(tmp_path / name)
    assert dtypes_in(tmp_path / "ours") == dtypes_in(tmp_path / "plain")
    inner = loaded(saved())
    inner.add_adapter(lora)
    inner.save_pretrained(tmp_path / "inner")
    assert dtypes_in(tmp_path / "inner") == dtypes_in(tmp_path / "plain")
    trained(ours).merge_and_unload().save_pretrained(tmp_path / "merged")
    assert dtypes_in(tmp_path / "merged") == {"bfloat16"}


def test_after_a_step_down(saved: Saved, tmp_path: Path) -> None:
    """A model that its guard brought into float32 is saved as its checkpoint was."""
    model = loaded(saved(), policy="prefer=memory")
    assert model.dtype == torch.bfloat16
    from safe_dtype.models.recast import recast

    recast(model, {torch.bfloat16}, torch.float32)
    model.save_pretrained(tmp_path)
    assert dtypes_in(tmp_path) == {"bfloat16"}


def test_guarded_by_hand(saved: Saved, tmp_path: Path) -> None:
    """A model that safe_dtype did not load is saved as it is."""
    model = transformers.AutoModelForCausalLM.from_pretrained(saved(), dtype=torch.float32)
    guard(model)
    model.save_pretrained(tmp_path)
    assert dtypes_in(tmp_path) == {"float32"}
    with pytest.raises(safe_dtype.errors.NoPlanError):
        plan_of(model)


def test_two_threads_at_once(tmp_path: Path) -> None:
    """The config says what it said before, whichever of two threads that save is done first."""
    config = transformers.LlamaConfig(dtype="float16")
    entered, leave = threading.Event(), threading.Event()

    def save() -> None:
        with config_saying(config, torch.bfloat16):
            entered.set()
            leave.wait(10)

    other = threading.Thread(target=save)
    with config_saying(config, torch.bfloat16):
        config.save_pretrained(tmp_path)
        other.start()
        entered.wait(0.5)
    leave.set()
    other.join()
    assert config.dtype == torch.float16
