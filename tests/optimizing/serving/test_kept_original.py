"""Eager answers from the very files that were optimized, or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as tf
from optimizing.form_models import Mlp
from optimizing.made import INPUTS, expected, optimized
from safetensors.torch import load_file, save_file

from safe_dtype.errors import NotOptimizedError, SafeDtypeWarning
from safe_dtype.optimizing.nouns.record_file import read_record, write_record
from safe_dtype.optimizing.serving.optimized import load_optimized

pytestmark = pytest.mark.usefixtures("own_cache")

IMAGES = {"pixel_values": torch.linspace(-1, 1, 1536).reshape(2, 3, 16, 16)}


def vit() -> tf.ViTForImageClassification:
    """Return a tiny classifier of transformers."""
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    return tf.ViTForImageClassification(tf.ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=5)).eval()


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """The folder of an optimization that chose eager."""
    optimized(vit(), tmp_path / "out", "eager", inputs=IMAGES)
    return tmp_path / "out"


def doubled(folder: Path) -> None:
    """Put a stranger's weights in the place of the original's."""
    weights = folder / "original/model.safetensors"
    save_file({name: 2 * one for name, one in load_file(weights).items()}, weights, metadata={"format": "pt"})


def one_byte(folder: Path) -> None:
    """Overwrite a byte in place, as a memory map does: size and name stay."""
    with (folder / "original/model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")


def other_config(folder: Path) -> None:
    """Change a setting that changes the numbers."""
    file = folder / "original/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"layer_norm_eps": 0.5}))


def adapter(folder: Path) -> None:
    """Add what from_pretrained loads on top of the weights."""
    (folder / "original/adapter_config.json").write_text("{}")


def shards(folder: Path) -> None:
    """Add an index, which names other weights."""
    (folder / "original/model.safetensors.index.json").write_text("{}")


def linked_away(folder: Path) -> None:
    """Let the weights be a link to the same bytes elsewhere, where they may change later."""
    weights = folder / "original/model.safetensors"
    weights.rename(folder.parent / "elsewhere.safetensors")
    weights.symlink_to(folder.parent / "elsewhere.safetensors")


def unlisted(folder: Path) -> None:
    """Take the hashes out of the record."""
    write_record(replace(read_record(folder), files={}), folder)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        pytest.param(doubled, r"model\.safetensors was changed since", id="weights"),
        pytest.param(one_byte, r"model\.safetensors was changed since", id="one-byte"),
        pytest.param(other_config, r"config\.json was changed since", id="config"),
        pytest.param(adapter, r"adapter_config\.json, which the record does not list", id="adapter"),
        pytest.param(shards, r"model\.safetensors\.index\.json, which the record does not list", id="index"),
        pytest.param(linked_away, "link to something outside of it", id="link"),
        pytest.param(unlisted, "lists no files of the original", id="no-hashes"),
    ],
)
def test_changed_original(change: Callable[[Path], None], problem: str, made: Path) -> None:
    """An original that is not the one that was optimized answers nothing."""
    torch.testing.assert_close(load_optimized(made)(**IMAGES), expected(vit(), IMAGES))
    change(made)
    with pytest.raises(NotOptimizedError, match=problem):
        load_optimized(made)(**IMAGES)


def test_hidden_files_are_no_part_of_it(made: Path) -> None:
    """What a file manager leaves there changes nothing."""
    (made / "original/.DS_Store").write_bytes(b"\0")
    torch.testing.assert_close(load_optimized(made)(**IMAGES), expected(vit(), IMAGES))


@pytest.mark.needs("torch>=2.13")
def test_form_goes_on(mlp: Path) -> None:
    """A form whose original has changed answers what it was made for; the rest is an error, not other numbers."""
    loaded = load_optimized(mlp)
    torch.save(Mlp(), mlp / "original/model.pt")
    torch.testing.assert_close(loaded(**INPUTS), expected(Mlp(), INPUTS))
    with pytest.raises(NotOptimizedError, match=r"original/model\.pt was changed since"):
        loaded(x=torch.randn(9, 16))


@pytest.mark.needs("torch>=2.13")
def test_pickle_that_was_swapped_is_not_loaded(mlp: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A pickled original that is put there after loading runs nothing, even where the record has no hash of it."""
    write_record(replace(read_record(mlp), files={}), mlp)
    loaded = load_optimized(mlp)
    torch.save(_Prints(), mlp / "original/model.pt")
    with pytest.raises(NotOptimizedError, match="was changed since"):
        loaded.eager()
    assert capfd.readouterr().out == ""


class _Prints:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("ran",)


def test_folder_behind_a_link(made: Path, tmp_path: Path) -> None:
    """Whether the folder, or one above it, is reached over a link makes no difference."""
    (tmp_path / "link").symlink_to(made)
    above = tmp_path / "above"
    above.symlink_to(tmp_path)
    for folder in (tmp_path / "link", above / "out"):
        torch.testing.assert_close(load_optimized(folder)(**IMAGES), expected(vit(), IMAGES))


def as_snapshot(folder: Path, cache: Path) -> Path:
    """Return the same files as the Hub's client keeps a download: links to blobs."""
    blobs, snapshot = cache / "models--org--made/blobs", cache / "models--org--made/snapshots" / ("ab" * 20)
    blobs.mkdir(parents=True)
    for number, file in enumerate(sorted(one for one in folder.rglob("*") if one.is_file())):
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, blobs / str(number))
        up = "../" * (len(link.relative_to(snapshot).parts) + 1)
        link.symlink_to(f"{up}blobs/{number}")
    return snapshot


@pytest.mark.needs("torch>=2.13")
def test_snapshot_of_the_hub(mlp: Path, made: Path, tmp_path: Path) -> None:
    """What was downloaded from the Hub is links to its blobs, and loads as it is."""
    form = load_optimized(as_snapshot(mlp, tmp_path / "first"))
    torch.testing.assert_close(form(**INPUTS), expected(Mlp(), INPUTS))
    assert form.fell_back == ""
    with pytest.warns(SafeDtypeWarning, match="dimension 0 of x is 9"):
        form(x=torch.ones(9, 16))
    snapshot = as_snapshot(made, tmp_path / "second")
    torch.testing.assert_close(load_optimized(snapshot)(**IMAGES), expected(vit(), IMAGES))


def test_snapshot_with_a_link_past_the_blobs(made: Path, tmp_path: Path) -> None:
    """A link of a snapshot to anything but a blob of its own is refused."""
    snapshot = as_snapshot(made, tmp_path / "cache")
    weights = snapshot / "original/model.safetensors"
    target = weights.resolve()
    target.rename(tmp_path / "elsewhere")
    weights.unlink()
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotOptimizedError, match="link to something outside of it"):
        load_optimized(snapshot)(**IMAGES)
