"""A weight that was rounded under a rescale, when it was loaded, comes back as it is without: what plain float16 has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from engineered import engineered
from safetensors.torch import load_file
from torch import Tensor, nn

from safe_dtype import SafeAutoModel
from safe_dtype.rescaling import rescaled_of

pytestmark = pytest.mark.filterwarnings("ignore:float16 was asked for", "ignore:.*is taken back")
NAME = "model.layers.0.self_attn.o_proj.weight"
ADAPTED = ("o_proj.weight", "down_proj.weight")


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose hidden states leave float16's range, and whose small weights lose bits when they are moved."""
    folder: Path = tmp_path_factory.mktemp(str(request.param))
    model: Any = engineered("llama").to(getattr(torch, request.param))
    model.save_pretrained(folder)
    return folder


def rescaled(folder: Path) -> Any:
    """Load it in float16, rescaled: some weights have lost bits by that."""
    model = SafeAutoModel.from_pretrained(folder, dtype="float16")
    found = rescaled_of(model)
    assert found is not None
    bits = found.rescale.shifts[0][1]
    whole, here = plain(folder).state_dict(), model.get_parameter(NAME).float()
    assert not torch.equal(here * 2.0**bits, whole[NAME].float())
    return model


def plain(folder: Path) -> Any:
    """Load it in float16 with transformers alone."""
    return tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16).eval()


def adapted(model: nn.Module) -> Any:
    """Return it with an adapter."""
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["o_proj", "down_proj"], r=4, init_lora_weights=False)
    return peft.get_peft_model(model, config).eval()  # type: ignore[arg-type]


def stored(folder: Path) -> dict[str, Tensor]:
    """Return all tensors in the files of `folder`."""
    return {name: one for file in folder.glob("*.safetensors") for name, one in load_file(file).items()}


def differs(found: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """Return the names of tensors whose bits are others."""
    assert found.keys() == expected.keys()
    return [
        name for name, one in expected.items() if found[name].dtype != one.dtype or not torch.equal(found[name], one)
    ]


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Return its parameters as they are."""
    return {name: one.detach() for name, one in model.named_parameters()}


def test_what_an_adapter_wraps(folder: Path) -> None:
    """A wrapped weight is what it is in a model that nobody rescaled, and so is what is merged into it."""
    ours, theirs = adapted(rescaled(folder)), adapted(plain(folder))
    before = {name: one for name, one in weights(theirs).items() if "base_layer" in name}
    assert before
    assert not differs({name: weights(ours)[name] for name in before}, before)
    before = {name: one.clone() for name, one in before.items()}
    for model in (ours, theirs):
        model.merge_adapter()
    after = {name: one for name, one in weights(theirs).items() if "base_layer" in name}
    assert len(differs(before, after)) == len(after)
    assert not differs({name: weights(ours)[name] for name in after}, after)


def test_saved_after_a_merge(folder: Path, tmp_path: Path) -> None:
    """A merged weight is saved as plain float16 has it, in the files' dtype; all others as the files have them."""
    model = adapted(rescaled(folder)).merge_and_unload()
    model.save_pretrained(tmp_path)
    merged = adapted(plain(folder)).merge_and_unload().state_dict()
    expected = stored(folder)
    expected |= {name: merged[name].to(one.dtype) for name, one in expected.items() if name.endswith(ADAPTED)}
    assert not differs(stored(tmp_path), expected)


@pytest.mark.parametrize("raised", [0, 3])
def test_saved_after_an_adapter_was_taken_off(folder: Path, raised: int, tmp_path: Path) -> None:
    """An adapter that comes and goes leaves nothing behind, raised or not."""
    model = rescaled(folder)
    force = rescaled_of(model)
    assert force is not None
    force.raise_bits(raised)
    adapted(model).unload().save_pretrained(tmp_path)
    assert not differs(stored(tmp_path), stored(folder))


def test_state_dict_of_an_adapted_model(folder: Path) -> None:
    """PEFT writes an adapted model's own weights, in float16."""
    ours, theirs = adapted(rescaled(folder)).state_dict(), adapted(plain(folder)).state_dict()
    assert not differs(ours, theirs)


@pytest.mark.parametrize("raised", [0, 3])
def test_undone(folder: Path, raised: int) -> None:
    """Taken back in float16, raised or not, it is what plain transformers loads."""
    model = rescaled(folder)
    force = rescaled_of(model)
    assert force is not None
    force.raise_bits(raised)
    force.fold.undo()
    norms = {name for name, one in weights(model).items() if one.dim() < 2}  # they are in float32 in a rescaled model
    expected = weights(plain(folder))
    found = {name: one.half() if name in norms else one for name, one in weights(model).items()}
    assert not differs(found, expected)


def test_a_changed_weight_stays(folder: Path) -> None:
    """What somebody wrote into is not what the file holds."""
    model = rescaled(folder)
    with torch.no_grad():
        model.get_parameter(NAME)[0] = 0
    force = rescaled_of(model)
    assert force is not None
    force.fold.undo()
    assert not model.get_parameter(NAME)[0].any()


@pytest.mark.parametrize("seed", range(4))
def test_raised_and_lowered_again_and_again(folder: Path, seed: int, tmp_path: Path) -> None:
    """However often it was raised, undone and moved anew, it is the one that was loaded, and saved as the files are."""
    model, random = rescaled(folder), torch.Generator().manual_seed(seed)
    force = rescaled_of(model)
    assert force is not None
    loaded, first = force.rescale, {name: one.clone() for name, one in weights(model).items()}
    for _ in range(6):
        more = int(torch.randint(1, 6, (1,), generator=random))
        force.raise_bits(more)
        if seed % 2:
            model.save_pretrained(tmp_path / "between")
            assert not differs(stored(tmp_path / "between"), stored(folder))
        force.raise_bits(-more)
        assert not differs(weights(model), first)
    force.raise_bits(3)
    model.save_pretrained(tmp_path / "saved")
    assert not differs(stored(tmp_path / "saved"), stored(folder))
    force.raise_bits(-3)
    assert force.rescale == loaded


@pytest.mark.parametrize("steps", [(4,), (1, 1, 2), (3, -2, 3)], ids=str)
def test_a_raise_is_that_of_the_file(folder: Path, steps: tuple[int, ...]) -> None:
    """Raised in float16 a weight is its file's, multiplied and rounded once, whatever loading had rounded before."""
    model = rescaled(folder)
    kept = rescaled_of(model)
    assert kept is not None
    for bits in steps:
        kept.raise_bits(bits)
    whole = stored(folder)
    for name, exponents in kept.fold.moved().items():
        (exponent,) = exponents.values()
        assert torch.equal(model.get_parameter(name), (whole[name].float() * 2.0**exponent).half()), name
