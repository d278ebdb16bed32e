"""Models that other libraries run: they enter by other ways than a call, and look at methods before they use them."""

from __future__ import annotations

import copy
import inspect
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from guarding.generators import IDS, generator
from tiny_models import TINY
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from safe_dtype import FLOAT32, guard, report, unguard
from safe_dtype.guarding.entries.own_forward import OwnForward
from safe_dtype.testing import fault

BF16 = torch.bfloat16
_SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def words(folder: Path) -> None:
    """Make a tokenizer of a few words."""
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog"]))
    tf.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)


def bert(model_class: Any = tf.BertModel, **options: Any) -> Any:
    """Return one in bfloat16."""
    torch.manual_seed(0)
    return model_class(tf.BertConfig(**_SMALL, vocab_size=60, **options)).eval().bfloat16()


@pytest.mark.parametrize("kind", ["nan", "not_implemented"])
def test_sentence_transformer(tmp_path: Path, kind: str) -> None:
    """sentence-transformers calls `model.forward` by its name: embeddings are those of float32."""
    library = pytest.importorskip("sentence_transformers")
    bert().save_pretrained(tmp_path)
    words(tmp_path)
    texts = ["a cat", "a dog cat dog"]
    wanted = library.SentenceTransformer(str(tmp_path), device="cpu", model_kwargs={"dtype": torch.float32}).encode(
        texts
    )
    encoder = library.SentenceTransformer(str(tmp_path), device="cpu", model_kwargs={"dtype": BF16})
    model = guard(encoder[0].auto_model)
    with fault(model, "encoder.layer.1.output.dense", kind):
        embeddings = encoder.encode(texts, convert_to_numpy=True)
    assert (embeddings == wanted).all()
    assert [event.after for event in report(model).events] == [FLOAT32]


@pytest.mark.parametrize("kind", ["nan", "not_implemented"])
def test_cross_encoder(tmp_path: Path, kind: str) -> None:
    """A head's scores are those of float32, whichever way it is run."""
    library = pytest.importorskip("sentence_transformers")
    bert(tf.BertForSequenceClassification, num_labels=1).save_pretrained(tmp_path)
    words(tmp_path)
    pairs = [("a cat", "a dog"), ("cat", "dog dog")]
    wanted = library.CrossEncoder(str(tmp_path), device="cpu", model_kwargs={"dtype": torch.float32}).predict(pairs)
    encoder = library.CrossEncoder(str(tmp_path), device="cpu", model_kwargs={"dtype": BF16})
    model = guard(encoder.model)
    with fault(model, "classifier", kind):
        scores = encoder.predict(pairs)
    assert (scores == wanted).all()
    assert [event.module for event in report(model).events] == ["classifier"]


class Pooled(nn.Module):
    """A wrapper as libraries write them: it calls the model by name, and pools."""

    def __init__(self, auto_model: Any) -> None:
        super().__init__()
        self.auto_model = auto_model
        self.dense = nn.Linear(32, 8).bfloat16()

    def encode(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the mean over the tokens, made smaller."""
        return self.dense(self.auto_model.forward(**features).last_hidden_state.mean(1).to(self.dense.weight.dtype))


@pytest.mark.parametrize("module", ["auto_model.encoder.layer.1.output.dense", "dense"])
def test_wrapper(module: str) -> None:
    """A plain module around a model of transformers is guarded with it, by the methods that it has."""
    torch.manual_seed(0)
    pooled = Pooled(bert()).eval()
    truth = copy.deepcopy(pooled).float()
    guard(pooled)
    with torch.no_grad(), fault(pooled, module, "nan"):
        assert torch.equal(pooled.encode({"input_ids": IDS}), truth.encode({"input_ids": IDS}))
    assert [event.module for event in report(pooled).events] == [module]


class Autoencoder(nn.Module):
    """An autoencoder as diffusers has them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)
        self.use_tiling = False
        self.scale = torch.tensor(0.18)

    def forward(self, sample: torch.Tensor) -> tuple[torch.Tensor]:
        """Encode and decode."""
        return (self.decode(self.encode(sample), return_dict=False)[0],)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Return latents."""
        return self.encoder(x)

    def decode(self, z: torch.Tensor, return_dict: bool = True) -> Any:
        """Return the image."""
        image = self.decoder(z)
        return {"sample": image} if return_dict else (image,)

    def enable_tiling(self) -> None:
        """Decode in tiles."""
        self.use_tiling = True

    def log_scale(self, values: torch.Tensor) -> torch.Tensor:
        """Return numbers that no network made."""
        return values.log() * self.scale

    def spectrum(self, values: torch.Tensor) -> torch.Tensor:
        """Return what no 16-bit dtype has."""
        return torch.fft.fft(values)


@pytest.mark.parametrize("kind", ["nan", "inf", "not_implemented"])
def test_autoencoder(kind: str) -> None:
    """`vae.decode` and `vae.encode` give what they give in float32; nothing but the network is a matter of the guard."""
    torch.manual_seed(0)
    vae = Autoencoder().eval().bfloat16()
    truth = copy.deepcopy(vae).float()
    latents, image = torch.randn(1, 4, 8, 8).bfloat16(), torch.randn(1, 3, 8, 8).bfloat16()
    for method, module, given in (("decode", "decoder", latents), ("encode", "encoder", image)):
        model = guard(copy.deepcopy(vae))
        with torch.no_grad(), fault(model, module, kind):
            output = getattr(model, method)(given)
        wanted = getattr(truth, method)(given.float())
        assert torch.equal(output["sample"], wanted["sample"]) if method == "decode" else torch.equal(output, wanted)
        assert [event.module for event in report(model).events] == [module]


def test_numbers_of_no_network() -> None:
    """Where a method runs no module, its infinities are its own, and its errors too; nothing is changed for them."""
    vae = guard(Autoencoder().eval().bfloat16())
    vae.enable_tiling()
    assert vae.use_tiling
    zeros = torch.zeros(2).bfloat16()
    for _ in range(2):
        assert vae.log_scale(zeros).isneginf().all()
        with pytest.raises(RuntimeError, match="Unsupported dtype BFloat16"):
            vae.spectrum(zeros)
    assert report(vae).events == ()
    assert vae.encoder.weight.dtype == BF16


# What looks at methods


def test_columns_of_the_trainer(tmp_path: Path) -> None:
    """The Trainer keeps the columns that `forward` names, and drops the others, as of a plain model."""
    rows = [{"input_ids": [3, 4], "labels": [3, 4], "extra": 5}]
    arguments = tf.TrainingArguments(tmp_path, report_to=[], use_cpu=True)
    columns = []
    for model in (generator(), guard(generator())):
        trainer = tf.Trainer(model=model, args=arguments, train_dataset=rows)
        trainer._set_signature_columns_if_needed()
        columns.append(trainer._signature_columns)
    assert columns[0] == columns[1]
    assert "input_ids" in columns[1]
    assert "extra" not in columns[1]


def test_arguments_of_generate() -> None:
    """`generate` refuses what `forward` takes no notice of."""
    model = guard(generator())
    with pytest.raises(ValueError, match="not used by the model"):
        model.generate(IDS, max_new_tokens=2, no_such_argument=5)


@pytest.mark.parametrize("method", ["forward", "get_text_features"])
def test_looked_at(method: str) -> None:
    """Signature, documentation and name are those of the plain method, and so is what it belongs to."""
    sizes = {**_SMALL, "vocab_size": 60, "max_position_embeddings": 16}
    config = tf.CLIPConfig(text_config=sizes, vision_config={**_SMALL, "image_size": 16, "patch_size": 8})
    model = tf.CLIPModel(config).eval()
    before = getattr(model, method)
    signature, function = inspect.signature(before), before.__func__
    guard(model)
    guarded = getattr(model, method)
    assert inspect.signature(guarded) == signature
    assert (guarded.__name__, guarded.__doc__, guarded.__self__) == (method, before.__doc__, model)
    assert guarded.__wrapped__ is function
    unguard(model)
    assert getattr(model, method).__func__ is function
    assert not isinstance(getattr(model, method), OwnForward)


def test_functional_call() -> None:
    """Called with other weights it computes with those."""
    model = bert()
    zeros = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    wanted = functional_call(model, zeros, (IDS,)).last_hidden_state
    assert torch.equal(functional_call(guard(model), zeros, (IDS,)).last_hidden_state, wanted)


def test_gradients_through_forward() -> None:
    """Called by name, checkpointed too, gradients are those of a plain model, training or not."""

    def gradients(model: Any, *, training: bool) -> list[Any]:
        model.train(training)
        torch.manual_seed(0)
        hidden = checkpoint(lambda ids: model.forward(ids).last_hidden_state, IDS, use_reentrant=False)
        hidden.float().pow(2).sum().backward()
        return [weight.grad for weight in model.parameters() if weight.grad is not None]

    for training in (True, False):
        pairs = list(
            zip(gradients(guard(bert()), training=training), gradients(bert(), training=training), strict=True)
        )
        assert pairs
        assert all(torch.equal(mine, theirs) for mine, theirs in pairs)


@pytest.mark.parametrize("make", ["export", "trace", "compile", "forward"])
def test_graphs(make: str) -> None:
    """What is exported, traced or compiled is the model alone, in one piece."""
    torch.manual_seed(0)
    vae = guard(Autoencoder().eval())
    image = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        wanted = vae(image)[0]
        if make == "export":
            graph = torch.export.export(vae, (image,), strict=True).module()
        elif make == "trace":
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)  # of newer releases than 2.6
                graph = torch.jit.trace(vae, (image,))
        else:
            graph = torch.compile(vae if make == "compile" else vae.forward, backend="eager", fullgraph=True)
        assert torch.equal(graph(image)[0], wanted)
    torch.compiler.reset()


@pytest.mark.parametrize("name", ["segformer", "bert"])
def test_exported_by_name(name: str) -> None:
    """Methods inside an exported forward are in its graph."""
    model, given = guard(TINY[name].make().eval()), TINY[name].inputs()
    with torch.no_grad():
        program = torch.export.export(model, (), given, strict=False)
        wanted = model(**given).logits
        assert torch.allclose(program.module()(**given)["logits"], wanted, atol=1e-6)
