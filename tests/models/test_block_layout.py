"""A model multiplies from blocks, and nothing else about it changes."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from numerics.laid_out import IDS, MODELS, load, save
from torch import Tensor, nn

from safe_dtype.models.block_layout import Layout, blocks_of, lay_out, take_back
from safe_dtype.numerics import compute_in

pytestmark = pytest.mark.needs("pagemap")
BF16 = torch.bfloat16


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return where the model of a name is saved; each is saved once."""
    found: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in found:
            found[name] = save(name, tmp_path_factory.mktemp(name))
        return found[name]

    return folder


@pytest.fixture
def plain(folders: Callable[[str], Path]) -> Any:
    """A tied Qwen3 as it is loaded."""
    return load(folders("qwen3-tied"))


@pytest.fixture
def model(folders: Callable[[str], Path]) -> Any:
    """The same one, laid out."""
    model = load(folders("qwen3-tied"))
    assert lay_out(model).modules
    return model


def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    """Return the logits of one forward pass without gradients."""
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})
    with torch.no_grad():
        return model(**inputs).logits


def generated(model: Any, count: int = 16) -> list[int]:
    """Return the tokens that follow a prompt, greedily."""
    options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
    return model.generate(IDS[:, :6], attention_mask=torch.ones(1, 6), **options)[0, -count:].tolist()


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear modules by name."""
    return {name: one for name, one in model.named_modules() if isinstance(one, nn.Linear)}


def distance(found: Tensor, exact: Tensor) -> float:
    """Return the relative root mean squared difference."""
    return float((found.double() - exact.double()).norm() / exact.double().norm())


@pytest.mark.parametrize(
    ("name", "modules", "plain_ones"),
    [
        pytest.param("qwen3-tied", 15, 0, id="qwen3-tied"),
        pytest.param("qwen3-untied", 15, 0, id="qwen3-untied"),
        pytest.param("t5", 17, 0, id="t5"),
        pytest.param("gpt2", 1, 4, id="gpt2-whose-layers-are-no-linear"),
        pytest.param("opt", 7, 0, id="opt"),
    ],
)
def test_which_modules_are_laid_out(name: str, modules: int, plain_ones: int, folders: Callable[[str], Path]) -> None:
    """Every linear module of a size is, the output head included; a class of transformers' own is not."""
    model = load(folders(name))
    done = lay_out(model)
    assert done.modules == modules == sum(blocks_of(one) is not None for one in linears(model).values())
    assert done.bytes >= done.given_back > 0.9 * sum(one.weight.nbytes for one in linears(model).values())
    assert sum(type(one).__name__ == "Conv1D" for one in model.modules()) == plain_ones


@pytest.mark.parametrize("rows", [1, 2, 8, 9, 20])
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_as_near_to_float32_as_plain_ones(name: str, rows: int, folders: Callable[[str], Path]) -> None:
    """Multiplied from blocks, by few rows and by many, logits are within the roundings of the model."""
    ids = IDS[:, :rows]
    model = load(folders(name))
    without = logits(model, ids)
    lay_out(model)
    found = logits(model, ids)
    take_back(model)
    exact = logits(model.float(), ids)
    assert (found.dtype, found.shape) == (without.dtype, without.shape)
    assert found.is_contiguous()
    assert distance(found, exact) <= 1.2 * distance(without, exact)


@pytest.mark.parametrize("name", MODELS)
def test_generation_goes_on_as_ever(name: str, folders: Callable[[str], Path]) -> None:
    """Greedy tokens are those of the plain model, as long as no two logits are a rounding apart."""
    model = load(folders(name))
    expected = generated(model)
    lay_out(model)
    found = generated(model)
    assert found[:4] == expected[:4]
    assert len(found) == len(expected)


def test_a_second_time_nothing_is_done(model: Any) -> None:
    """What is laid out stays so."""
    before = logits(model)
    assert lay_out(model) == Layout(0, 0, 0)
    assert torch.equal(logits(model), before)


def test_many_rows_may_be_computed_in_the_storage_dtype(plain: Any) -> None:
    """With `wide` many rows are multiplied as plain torch does, from blocks."""
    expected = logits(plain)
    lay_out(plain, wide=BF16)
    assert distance(logits(plain), expected) < 0.02


def test_threads_multiply_at_the_same_time(model: Any) -> None:
    """Two threads that call one model get what each alone would get."""
    prompts = [IDS[:, :rows] for rows in (1, 3, 8, 9, 20)] * 4
    expected = [logits(model, ids) for ids in prompts]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda ids: logits(model, ids), prompts))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


# What it is to others


def test_it_is_still_the_same_model(model: Any, plain: Any) -> None:
    """Classes, text, parameters and their sharing are those of the plain model."""
    assert repr(model) == repr(plain)
    assert all(isinstance(one, nn.Linear) for one in linears(model).values())
    assert {name: one.shape for name, one in model.named_parameters()} == {
        name: one.shape for name, one in plain.named_parameters()
    }
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert all(type(one) is nn.Parameter for one in model.parameters())


def test_its_state_is_the_same(model: Any, plain: Any) -> None:
    """`state_dict` has the same keys and bits, read from the file again."""
    found, expected = model.state_dict(), plain.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_it_saves_the_same_files(model: Any, plain: Any, tmp_path: Path) -> None:
    """`save_pretrained` writes the bytes that it writes of the plain model."""
    model.save_pretrained(tmp_path / "blocks")
    plain.save_pretrained(tmp_path / "plain")
    files = sorted(one.name for one in (tmp_path / "plain").iterdir())
    assert files == sorted(one.name for one in (tmp_path / "blocks").iterdir())
    for name in files:
        assert (tmp_path / "blocks" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes(), name


def test_a_copy_is_plain(model: Any, plain: Any) -> None:
    """`copy.deepcopy` gives plain modules, with weights of their own and the same outputs as a plain model."""
    found = copy.deepcopy(model)
    assert {type(one) for one in linears(found).values()} == {nn.Linear}
    assert type(found.model.embed_tokens) is nn.Embedding
    assert torch.equal(logits(found), logits(plain))
    assert found.lm_head.weight is found.model.embed_tokens.weight
    assert blocks_of(model.lm_head) is not None


def test_a_pickle_is_plain(model: Any, tmp_path: Path) -> None:
    """A module pickled here, as torch saves and in the newest protocol, is loaded by a process without safe_dtype."""
    for protocol in (2, 5):
        pickled = pickle.dumps([model.lm_head, model.model.embed_tokens], protocol)
        (tmp_path / f"{protocol}.pickle").write_bytes(pickled)
    code = f"""
import sys, pickle, pathlib
sys.modules["safe_dtype"] = None
for protocol in (2, 5):
    linear, embedding = pickle.loads(pathlib.Path({str(tmp_path)!r}, f"{{protocol}}.pickle").read_bytes())
    assert (type(linear).__name__, type(embedding).__name__) == ("Linear", "Embedding")
    print(float(linear.weight.detach().double().sum()), len(linear.state_dict()))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == 2 * [str(float(model.lm_head.weight.detach().double().sum())), "1"]


def test_taking_back(model: Any, plain: Any) -> None:
    """`take_back` restores the exact classes, and outputs bit for bit."""
    assert take_back(model) == 16  # 15 linear modules, and the embedding
    assert [type(one) for one in model.modules()] == [type(one) for one in plain.modules()]
    assert [sorted(one.__dict__) for one in model.modules()] == [sorted(one.__dict__) for one in plain.modules()]
    assert torch.equal(logits(model), logits(plain))
    assert take_back(model) == 0


def test_hooks_run(model: Any) -> None:
    """Forward hooks see the module's inputs and outputs."""
    seen = []
    model.lm_head.register_forward_hook(lambda _module, args, out: seen.append((args[0].shape[-1], out.shape[-1])))
    logits(model)
    assert seen == [(512, 1000)]


def test_compute_in_goes_along(model: Any, plain: Any) -> None:
    """Within `compute_in` the blocks are multiplied as ever, and the rest of the model in the block's dtype."""
    exact = logits(copy.deepcopy(plain).float())
    with compute_in("float32"):
        found = logits(model)
    assert distance(found, exact) <= 1.2 * distance(logits(plain), exact)


# Where the plain weight is multiplied


def test_gradients_are_real(model: Any, plain: Any) -> None:
    """Where gradients are on, they are those of the plain model, bit for bit."""
    for one in (model, plain):
        one(input_ids=IDS, labels=IDS).loss.backward()
    expected = {name: one.grad for name, one in plain.named_parameters()}
    assert all(torch.equal(one.grad, expected[name]) for name, one in model.named_parameters())


@pytest.mark.parametrize("trained", ["bias", "weight", "input"])
def test_a_gradient_for_one_thing_only(trained: str, folders: Callable[[str], Path]) -> None:
    """A gradient of only the bias, the weight or the input is enough to be recorded."""
    model = load(folders("opt")).requires_grad_(False)
    lay_out(model)
    module, x = model.model.decoder.layers[0].fc1, torch.randn(20, 512, dtype=BF16)
    wanted = x if trained == "input" else getattr(module, trained)
    wanted.requires_grad_(True)
    module(x).float().sum().backward()
    assert wanted.grad is not None


def test_a_compiled_model_multiplies_the_plain_weight(model: Any, plain: Any) -> None:
    """`torch.compile` sees a plain linear module, without a break in the graph."""
    torch._dynamo.reset()
    module, x = model.model.layers[0].mlp, torch.randn(3, 512, dtype=BF16)
    with torch.no_grad():
        found = torch.compile(module, backend="eager", fullgraph=True)(x)
        assert torch.equal(found, plain.model.layers[0].mlp(x))
    torch._dynamo.reset()


def test_an_exported_model_has_the_plain_weight(model: Any, plain: Any) -> None:
    """`torch.export` records a linear operation of the parameter."""
    x = torch.randn(3, 512, dtype=BF16)
    with torch.no_grad():
        program = torch.export.export(model.model.layers[0].mlp, (x,), strict=False)
        assert torch.equal(program.module()(x), plain.model.layers[0].mlp(x))


def test_autocast_decides(model: Any) -> None:
    """Within `torch.autocast` its dtype is computed in."""
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        assert model.lm_head(torch.randn(3, 512)).dtype == torch.float16


@pytest.mark.parametrize(
    "x",
    [
        pytest.param(torch.ones(2, 512), id="another-dtype"),
        pytest.param(torch.ones(2, 500, dtype=BF16), id="another-width"),
        pytest.param(torch.ones((), dtype=BF16), id="no-dimension"),
    ],
)
def test_errors_are_torchs(x: Tensor, model: Any, plain: Any) -> None:
    """What the plain module refuses is refused in its words."""
    with pytest.raises(RuntimeError) as expected, torch.no_grad():
        plain.lm_head(x)
    with pytest.raises(RuntimeError) as found, torch.no_grad():
        model.lm_head(x)
    assert str(found.value) == str(expected.value)


def test_a_vectorized_call(model: Any, plain: Any) -> None:
    """`torch.vmap` maps over it."""
    x = torch.randn(4, 2, 512, dtype=BF16)
    with torch.no_grad():
        assert torch.equal(torch.vmap(model.lm_head)(x), torch.vmap(plain.lm_head)(x))


@pytest.mark.parametrize("ids", [[0, 999], [], [[5, 5], [7, 1]]], ids=str)
def test_embeddings_are_looked_up_bit_for_bit(ids: list[Any], model: Any, plain: Any) -> None:
    """The embedding that is tied to the output head returns the same bits."""
    index = torch.tensor(ids, dtype=torch.int64)
    with torch.no_grad():
        assert torch.equal(model.model.embed_tokens(index), plain.model.embed_tokens(index))
        with pytest.raises(IndexError, match="index out of range in self"):
            model.model.embed_tokens(torch.tensor([1000]))
