"""What loading will fail at is said before, and is what it fails at."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_run import Run, run

from safe_dtype import SafeAutoModel
from safe_dtype.errors import CheckpointError, NothingToCompareError
from safe_dtype.loading import Request, explained, foreseen

__all__ = ["run"]

POINTER = "version https://git-lfs.github.com/spec/v1\nsize 123\n"


@pytest.fixture
def model(tiny_qwen3: Path, tmp_path: Path) -> Path:
    """Return a copy of the bundled model, to be broken."""
    return Path(shutil.copytree(tiny_qwen3, tmp_path / "model"))


def with_config(**changes: Any) -> Callable[[Path], None]:
    """Return what changes a checkpoint's config; None removes a key."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))

    return change


def without(*patterns: str) -> Callable[[Path], None]:
    """Return what deletes files of a checkpoint."""

    def change(folder: Path) -> None:
        for pattern in patterns:
            for path in folder.glob(pattern):
                path.unlink()

    return change


FAR = {
    "no-config": (without("config.json"), "it has no config.json"),
    "no-model-type": (with_config(model_type=None, architectures=None), "its config.json names no `model_type`"),
    "unknown-model-type": (
        with_config(model_type="frobnicate", architectures=["FrobForCausalLM"]),
        "does not know its model_type 'frobnicate'. Next: `python -m pip install --upgrade transformers`",
    ),
    "own-code": (
        with_config(model_type="own", architectures=["Own"], auto_map={"AutoConfig": "configuration_own.OwnConfig"}),
        "it brings Python code of its own",
    ),
    "refused-value": (with_config(num_hidden_layers=-1), "transformers refuses its config.json: "),
}


@pytest.mark.parametrize(("change", "words"), FAR.values(), ids=FAR)
def test_config(change: Callable[[Path], None], words: str, model: Path) -> None:
    """A config that transformers cannot load is foreseen, and loading does fail."""
    change(model)
    (failure,) = foreseen(Request(str(model), {}))
    assert words in str(failure)
    with pytest.raises(CheckpointError, match="Next: "), explained(Request(str(model), {}), reads_text=False):
        pytest.fail("begun for nothing")
    with pytest.raises(Exception):  # noqa: B017, PT011  (transformers' own, of many classes)
        SafeAutoModel.from_pretrained(model, trust_remote_code=False)


TOKENIZERS = {
    "none": (without("tokenizer*"), "it has no tokenizer. Next: copy that of its base model"),
    "git-lfs": (
        lambda folder: (folder / "tokenizer.json").write_text(POINTER),
        "tokenizer.json is a Git LFS pointer: the file's 123 bytes were never downloaded. Next: run `git lfs pull` in",
    ),
}


@pytest.mark.parametrize(("change", "words"), TOKENIZERS.values(), ids=TOKENIZERS)
def test_tokenizer(change: Callable[[Path], None], words: str, model: Path) -> None:
    """A tokenizer that is not there explains what fails where text is read, and nothing where none is."""
    change(model)
    request = Request(str(model), {})
    (failure,) = foreseen(request)
    assert words in str(failure)
    assert failure.warning.startswith("reading text with it will fail: ")
    assert foreseen(request, reads_text=False) == ()
    assert SafeAutoModel.from_pretrained(model).config.model_type == "qwen3"  # without a word of text it loads
    too_short = NothingToCompareError("the text has 0 tokens", "pass a longer one")
    with pytest.raises(CheckpointError, match=words.partition(". ")[0]), explained(request, reads_text=True):
        raise too_short
    with pytest.raises(NothingToCompareError), explained(request, reads_text=False):
        raise too_short


def test_pointer_behind_an_error_of_ours(model: Path) -> None:
    """A tokenizer that is a Git LFS pointer is named as one, where it was said already that it cannot be read."""
    (model / "tokenizer.json").write_text(POINTER)
    unreadable = CheckpointError(str(model), "has no tokenizer that transformers can load", "pass one that has")
    with pytest.raises(CheckpointError, match="git lfs pull"), explained(Request(str(model), {}), reads_text=True):
        raise unreadable


def test_other_shapes(model: Path) -> None:
    """Weights of other shapes than the config says are named as that, where loading comes to them."""
    with_config(hidden_size=2 * json.loads((model / "config.json").read_text())["hidden_size"])(model)
    request = Request(str(model), {})
    with pytest.raises(CheckpointError, match="other shapes than its config"), explained(request, reads_text=False):
        SafeAutoModel.from_pretrained(model, dtype="float32")


def test_own_code_that_is_not_needed(model: Path) -> None:
    """A model type with code of its own and an architecture of transformers' loads without that code (Kimi-K2)."""
    with_config(model_type="own", auto_map={"AutoConfig": "configuration_own.OwnConfig"})(model)
    request = Request(str(model), {})
    assert foreseen(request) == ()
    with explained(request, reads_text=True), pytest.warns(UserWarning, match="no model type 'own'"):
        assert type(SafeAutoModel.from_pretrained(model, dtype="float32")).__name__ == "Qwen3ForCausalLM"


def test_nothing(model: Path) -> None:
    """Nothing is foreseen of a model that loads, and its errors stay as they are."""
    request = Request(str(model), {})
    assert foreseen(request) == ()
    with pytest.raises(OSError, match=r"^its disk is gone$"), explained(request, reads_text=True):
        raise OSError("its disk is gone")


@pytest.mark.parametrize("command", ["plan", "optimize"])
def test_said_before(command: str, run: Run, model: Path) -> None:
    """`plan` and `optimize --dry-run` warn of what will fail, and end well: they load nothing."""
    with_config(model_type="frobnicate", architectures=["FrobForCausalLM"])(model)
    done = run(command, model, *(["--dry-run"] if command == "optimize" else []))
    assert done.returncode == 0
    assert "warning: loading it will fail: transformers" in done.stdout
