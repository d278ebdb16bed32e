"""Tensors that are made where they are read, and saves that take no more memory than a shard."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import Accelerator
from engineered import saved as rescuable
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import safe_dtype
from safe_dtype import SafeAutoModelForCausalLM, SafeDtypeWarning
from safe_dtype.models.saving.late_tensor import LateTensor, made
from safe_dtype.rescaling import rescaled_of

SOURCE = torch.linspace(-3, 3, 24).reshape(4, 6)
EXPECTED = SOURCE.bfloat16()


def late() -> LateTensor:
    """Return one."""
    return LateTensor.cast(SOURCE, torch.bfloat16)


def test_looks_like_what_it_will_be() -> None:
    """Shape, dtype, device and size are known, and nothing is made for them."""

    def never() -> Tensor:
        raise AssertionError

    tensor = LateTensor(never, SOURCE, torch.bfloat16)
    assert (tensor.shape, tensor.dtype, tensor.device) == (SOURCE.shape, torch.bfloat16, torch.device("cpu"))
    assert (tensor.nbytes, tensor.untyped_storage().nbytes(), tensor.is_contiguous()) == (48, 48, True)
    assert (
        tensor.untyped_storage().data_ptr() != LateTensor(never, SOURCE, torch.bfloat16).untyped_storage().data_ptr()
    )
    assert tensor.contiguous().shape == tensor.shape
    assert "(4, 6)" in repr(tensor)


READS: dict[str, Callable[[Tensor], Any]] = {
    "add": lambda tensor: tensor + 1,
    "view": lambda tensor: tensor.view(-1)[5:9] * 1,
    "chunks": lambda tensor: torch.cat([chunk.squeeze(0) for chunk in torch.chunk(tensor, 4)]),
    "transposed": lambda tensor: tensor.transpose(0, 1).contiguous() + 0,
    "float": lambda tensor: tensor.float(),
    "clone": lambda tensor: tensor.clone(),
    "numpy": lambda tensor: torch.from_numpy(tensor.float().numpy()),
    "list": lambda tensor: torch.tensor(tensor.tolist()),
    "item": lambda tensor: torch.tensor(tensor[1, 2].item()),
    "deepcopy": copy.deepcopy,
    "pickle": lambda tensor: pickle.loads(pickle.dumps(tensor)),
    "in-place": lambda tensor: tensor.mul_(2).add_(1),
}


@pytest.mark.parametrize("read", READS)
def test_reads(read: str) -> None:
    """Whatever reads it gets the numbers of the tensor that is cast at once."""
    assert torch.equal(READS[read](late()), READS[read](EXPECTED.clone()))


def test_stays_what_was_written_into_it() -> None:
    """What is written into one is there afterwards."""
    tensor = late()
    tensor.mul_(2)
    tensor[0].zero_()
    expected = EXPECTED * 2
    assert torch.equal(tensor[1:] + 0, expected[1:])


def test_files(tmp_path: Path) -> None:
    """Safetensors and torch write the numbers, of parts as well."""
    state = {"whole": late(), "part": torch.chunk(late(), 2)[1], "turned": late().transpose(0, 1).contiguous()}
    expected = {"whole": EXPECTED, "part": EXPECTED[2:], "turned": EXPECTED.T.contiguous()}
    save_file(state, tmp_path / "x.safetensors")
    assert all(torch.equal(one, expected[name]) for name, one in load_file(tmp_path / "x.safetensors").items())
    buffer = io.BytesIO()
    torch.save({name: one for name, one in state.items() if name != "turned"}, buffer)
    buffer.seek(0)
    assert all(torch.equal(one, expected[name]) for name, one in torch.load(buffer).items())


def test_made_once() -> None:
    """Tied tensors are made once, and stay tied; what is no late tensor is passed on."""
    tensor = late()
    state = made({"a": tensor, "b": tensor, "c": SOURCE, "d": 5})
    assert state["a"] is state["b"]
    assert torch.equal(state["a"], EXPECTED)
    assert state["c"] is SOURCE
    assert state["d"] == 5


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, for as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call, and count."""
        results = func(*args, **(kwargs or {}))
        known = {one.untyped_storage().data_ptr() for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        for result in tree_leaves(results):
            if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in known:
                self.now += result.nbytes
                self.most = max(self.most, self.now)
                weakref.finalize(result, self._gone, result.nbytes)
        return results

    def _gone(self, size: int) -> None:
        self.now -= size


@contextmanager
def counted() -> Iterator[Alive]:
    """Count what is made within the block."""
    gc.collect()
    with Alive() as alive:
        yield alive


WIDE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 16,
    "num_attention_heads": 4,
    "vocab_size": 512,
}
SHARD = 100_000  # bytes; the model has 1.2 MB in bfloat16


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model in bfloat16 with tied weights, in files of 100 kB."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**WIDE, num_key_value_heads=4, tie_word_embeddings=True)
    folder = tmp_path_factory.mktemp("wide")
    transformers.LlamaForCausalLM(config).bfloat16().save_pretrained(folder, max_shard_size=SHARD)
    return folder


def patched_load(folder: Path, **arguments: Any) -> Any:
    """Load in a patched program."""
    with warnings.catch_warnings(), safe_dtype.patched():
        warnings.simplefilter("ignore", SafeDtypeWarning)
        return transformers.AutoModelForCausalLM.from_pretrained(folder, **arguments)


def in_files(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a folder."""
    return {name: one for file in sorted(folder.glob("*.safetensors")) for name, one in load_file(file).items()}


SAVES: dict[str, Callable[[Any, Path], None]] = {
    "save_pretrained": lambda model, folder: model.save_pretrained(folder, max_shard_size=SHARD),
    "state_dict": lambda model, folder: model.save_pretrained(
        folder, max_shard_size=SHARD, state_dict=model.state_dict()
    ),
    "accelerate": lambda model, folder: Accelerator(cpu=True).save_model(model, folder, max_shard_size=SHARD),
}


@pytest.mark.parametrize("save", SAVES)
def test_a_shard_at_a_time(save: str, wide: Path, tmp_path: Path) -> None:
    """A cast save makes no second copy of the weights: what is alive is a shard, and tied weights, which are written once."""
    model = patched_load(wide)
    assert model.dtype == torch.float32
    with counted() as alive:
        SAVES[save](model, tmp_path)
    assert 0 < alive.most < 3 * SHARD
    assert sum(one.nbytes for one in in_files(wide).values()) > 10 * SHARD
    before, after = in_files(wide), in_files(tmp_path)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and after[name].dtype == torch.bfloat16 for name in before)
    assert [one.name for one in sorted(wide.glob("*.safetensors"))] == [
        one.name for one in sorted(tmp_path.glob("*.safetensors"))
    ]


def test_a_rescued_model_a_shard_at_a_time(tmp_path: Path) -> None:
    """A rescued model is saved from its files without a second copy of all its weights."""
    source = rescuable("qwen3", tmp_path / "before", max_shard_size="60KB")
    model = SafeAutoModelForCausalLM.from_pretrained(source, dtype="float16")
    assert rescaled_of(model) is not None
    with counted() as alive:
        model.save_pretrained(tmp_path / "after", max_shard_size="60KB")
    before, after = in_files(source), in_files(tmp_path / "after")
    whole = sum(one.nbytes for one in before.values())
    assert alive.most < whole / 2
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("shard", ["1GB", SHARD // 3], ids=str)
def test_saved_over_its_own_files(shard: str | int, wide: Path, tmp_path: Path) -> None:
    """A model that is saved into the folder it came from has read all of it before the first file is written."""
    before = in_files(wide)
    for file in wide.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    model = patched_load(tmp_path)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    after = in_files(tmp_path)
    assert all(torch.equal(before[name], after[name]) for name in before)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(plain.lm_head.weight, before["model.embed_tokens.weight"])


def test_rescued_over_its_own_files(tmp_path: Path) -> None:
    """So has a rescued one, whatever the sizes of its files."""
    source = rescuable("qwen3", tmp_path / "model", max_shard_size="60KB")
    before = in_files(source)
    model = SafeAutoModelForCausalLM.from_pretrained(source, dtype="float16")
    model.save_pretrained(source, max_shard_size="30KB")
    after = in_files(source)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_arguments_are_passed_on(wide: Path, tmp_path: Path) -> None:
    """A caller's state dict stays as it is; who is not the main process writes no weights; the variant is in the name."""
    model = patched_load(wide)
    state = model.state_dict()
    kept = dict(state)
    model.save_pretrained(tmp_path / "main", state_dict=state, variant="v")
    assert all(state[name] is kept[name] for name in kept)
    assert (tmp_path / "main" / "model.v.safetensors").exists()
    model.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not list((tmp_path / "other").glob("*.safetensors"))
