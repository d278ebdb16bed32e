"""Every way to load a model passes the seam, once for each model."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
import transformers
from tiny_models import TINY

import safe_dtype
from safe_dtype import SafeAutoModel, plan_of

Saved = Callable[..., Path]


def adapter(saved: Saved, tmp_path: Path) -> Path:
    """Save a LoRA adapter of the tiny Qwen3."""
    base = transformers.AutoModelForCausalLM.from_pretrained(saved(), dtype=torch.bfloat16)
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(base, lora).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def tokenizer(folder: Path) -> Any:
    """Make a tokenizer of a few words, in a folder where sentence-transformers looks for one."""
    import tokenizers

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[UNK]")
    made.save_pretrained(folder)
    return made


def remote_code(folder: Path) -> Path:
    """Write a checkpoint that brings its own class."""
    folder.mkdir()
    (folder / "patched_model.py").write_text(
        "from transformers import PreTrainedConfig, PreTrainedModel\n"
        "import torch\n"
        "class RemoteConfig(PreTrainedConfig):\n"
        "    model_type = 'safe_dtype_patched'\n"
        "class RemoteModel(PreTrainedModel):\n"
        "    config_class = RemoteConfig\n"
        "    def __init__(self, config):\n"
        "        super().__init__(config)\n"
        "        self.line = torch.nn.Linear(4, 4)\n"
        "        self.post_init()\n"
    )
    config = {
        "model_type": "safe_dtype_patched", "architectures": ["RemoteModel"], "dtype": "bfloat16",
        "auto_map": {"AutoConfig": "patched_model.RemoteConfig", "AutoModel": "patched_model.RemoteModel"},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    weights = {"line.weight": torch.eye(4).bfloat16(), "line.bias": torch.zeros(4).bfloat16()}
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def sentence_transformer(saved: Saved, tmp_path: Path) -> list[Any]:
    """Load a tiny BERT with mean pooling."""
    from sentence_transformers import SentenceTransformer

    folder = tmp_path / "sentences"
    transformers.BertModel(transformers.BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1,
                           num_attention_heads=2, intermediate_size=8)).to(torch.bfloat16).save_pretrained(folder)  # fmt: skip
    tokenizer(folder)
    with safe_dtype.patched():
        return [SentenceTransformer(str(folder), device="cpu")[0].auto_model]


def trained(saved: Saved, tmp_path: Path) -> list[Any]:
    """Make a Trainer whose `model_init` loads, and train one step."""
    rows = [{"input_ids": [3, 4, 5], "labels": [3, 4, 5]}] * 2
    arguments = transformers.TrainingArguments(
        tmp_path, max_steps=1, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True
    )

    def model_init() -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(saved())

    trainer = transformers.Trainer(model=model_init(), args=arguments, train_dataset=rows)
    trainer.train()
    return [trainer.model]


def _both(model: Any) -> list[Any]:
    return [model.encoder, model.decoder]


Load = Callable[[Saved, Path], list[Any]]

# What is loaded, as a user writes it.
PATHS: dict[str, Load] = {
    "AutoModel": lambda saved, _: [transformers.AutoModel.from_pretrained(saved())],
    "AutoModelForX": lambda saved, _: [transformers.AutoModelForCausalLM.from_pretrained(saved())],
    "concrete-class": lambda saved, _: [transformers.Qwen3ForCausalLM.from_pretrained(saved())],
    "by-keyword": lambda saved, _: [
        transformers.Qwen3ForCausalLM.from_pretrained(pretrained_model_name_or_path=str(saved()))
    ],
    "config-object": lambda saved, _: [
        transformers.Qwen3ForCausalLM.from_pretrained(saved(), config=TINY["qwen3"].make().config)
    ],
    "config-path": lambda saved, _: [transformers.Qwen3ForCausalLM.from_pretrained(saved(), config=str(saved()))],
    "explicit-dtype": lambda saved, _: [transformers.AutoModelForCausalLM.from_pretrained(saved(), dtype="float32")],
    "device_map": lambda saved, _: [transformers.AutoModelForCausalLM.from_pretrained(saved(), device_map="cpu")],
    "loading-info": lambda saved, _: [
        transformers.AutoModelForCausalLM.from_pretrained(saved(), output_loading_info=True)[0]
    ],
    "state-dict": lambda saved, _: [
        transformers.Qwen3ForCausalLM.from_pretrained(
            None, config=TINY["qwen3"].make().config, state_dict=TINY["qwen3"].make().bfloat16().state_dict()
        )
    ],
    "remote-code": lambda _, tmp_path: [
        transformers.AutoModel.from_pretrained(remote_code(tmp_path / "remote"), trust_remote_code=True)
    ],
    "encoder-decoder": lambda saved, _: _both(
        transformers.EncoderDecoderModel.from_encoder_decoder_pretrained(saved("bert"), saved("bert"))
    ),
    "SafeAutoModel": lambda saved, _: [SafeAutoModel.from_pretrained(saved())],
    "SafeAutoModelForX": lambda saved, _: [safe_dtype.SafeAutoModelForCausalLM.from_pretrained(saved())],
    "Trainer": trained,
    **{
        f"architecture-{name}": lambda saved, _, name=name: [  # type: ignore[misc]
            getattr(transformers, TINY[name].auto_name).from_pretrained(saved(name))
        ]
        for name in TINY
    },
}  # fmt: skip


def times_planned(caplog: pytest.LogCaptureFixture) -> int:
    """Count the plans that were logged."""
    return sum(
        one.name == "safe_dtype.loading.plan_request" and one.levelno == logging.DEBUG for one in caplog.records
    )


@pytest.mark.parametrize("path", PATHS)
def test_planned_once(path: str, saved: Saved, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each model has a plan and a guard, and was planned exactly once."""
    with safe_dtype.patched(), caplog.at_level(logging.DEBUG, "safe_dtype"):
        models = PATHS[path](saved, tmp_path)
    check(models, caplog)


def check(models: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    """Compare what came with its plan."""
    for model in models:
        assert str(model.dtype) == f"torch.{plan_of(model).storage}"
        assert not safe_dtype.report(model).events
    assert times_planned(caplog) == len(models)


def test_same_as_safe_auto_model(saved: Saved) -> None:
    """The patched Auto class chooses what SafeAutoModel chooses, for the policy of the patch."""
    for policy in ("auto", "prefer=memory", "prefer=fidelity"):
        with safe_dtype.patched(policy):
            mine = transformers.AutoModelForCausalLM.from_pretrained(saved())
        theirs = SafeAutoModel.from_pretrained(saved(), policy=policy)
        assert plan_of(mine).storage == plan_of(theirs).storage
        assert plan_of(mine).policy == plan_of(theirs).policy
        assert mine.dtype == theirs.dtype


@pytest.mark.parametrize(
    "auto",
    [
        pytest.param(True, id="AutoPeftModel"),
        pytest.param(False, marks=pytest.mark.needs("adapter_loader"), id="AutoModel-of-an-adapter"),
    ],
)
def test_peft(auto: bool, saved: Saved, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An adapter's base is planned, however PEFT or transformers come to it."""
    folder = adapter(saved, tmp_path)
    wanted = plan_of(SafeAutoModel.from_pretrained(saved())).storage
    loader = peft.AutoPeftModelForCausalLM if auto else transformers.AutoModelForCausalLM
    with safe_dtype.patched(), caplog.at_level(logging.DEBUG, "safe_dtype"):
        model = loader.from_pretrained(folder)
    assert plan_of(model).storage == wanted
    assert any("lora" in name for name, _ in model.named_parameters())
    assert times_planned(caplog) == 1


def test_pipeline(saved: Saved, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`pipeline` of a folder loads a planned model, and generates with it."""
    with safe_dtype.patched(), caplog.at_level(logging.DEBUG, "safe_dtype"):
        words = transformers.pipeline("text-generation", str(saved()), tokenizer=tokenizer(tmp_path), device="cpu")
        assert words("a b", max_new_tokens=2, do_sample=False)
    check([words.model], caplog)


def test_sentence_transformers(saved: Saved, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A SentenceTransformer's model is planned."""
    pytest.importorskip("sentence_transformers")
    with caplog.at_level(logging.DEBUG, "safe_dtype"):
        models = sentence_transformer(saved, tmp_path)
    check(models, caplog)


def test_overriding_class(tmp_path: Path, saved: Saved, caplog: pytest.LogCaptureFixture) -> None:
    """A class with a `from_pretrained` of its own, which calls `super()`, is planned as well."""

    class Own(transformers.Qwen3ForCausalLM):
        @classmethod
        def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
            model = super().from_pretrained(*args, **kwargs)
            model.was_here = True
            return model

    with safe_dtype.patched(), caplog.at_level(logging.DEBUG, "safe_dtype"):
        model = Own.from_pretrained(saved())
    assert model.was_here
    check([model], caplog)


# transformers does not tie the weights of a model that is loaded while another is built, and reports the head as missing.
@pytest.mark.filterwarnings("ignore:.*random numbers.*lm_head.weight")
def test_model_inside_a_model(saved: Saved, caplog: pytest.LogCaptureFixture) -> None:
    """A model that loads another while it is built: each has a plan, with SafeAutoModel around them too."""
    folder = saved()

    class Outer(transformers.Qwen3ForCausalLM):
        def post_init(self) -> None:
            with torch.device("cpu"):
                Outer.inner = transformers.Qwen3ForCausalLM.from_pretrained(folder)
            super().post_init()

    with safe_dtype.patched(), caplog.at_level(logging.DEBUG, "safe_dtype"):
        model = Outer.from_pretrained(folder)
    check([model, Outer.inner], caplog)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator of that number")
def test_a_number_without_accelerators(tiny_qwen3: Path) -> None:
    """Where transformers takes the CPU for any number of a device, the model is planned for it."""
    with safe_dtype.patched(tell="nothing"):
        model = transformers.pipeline("text-generation", str(tiny_qwen3), device=0).model
    assert (plan_of(model).device, str(model.device)) == ("cpu", "cpu")
