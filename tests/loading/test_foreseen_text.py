"""What reading text and talking will fail at is foreseen from the files of the tokenizer and the chat templates."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers

from safe_dtype.loading import Request, foreseen
from safe_dtype.loading.foreseen_text import foreseen_of_text

BROKEN = "{% for message in messages %}{{ message.content }}"


@pytest.fixture
def model(tiny_qwen3: Path, tmp_path: Path) -> Path:
    """Return a copy of the bundled model, to be broken."""
    return Path(shutil.copytree(tiny_qwen3, tmp_path / "model"))


def in_config(**values: object) -> Callable[[Path], None]:
    """Return what writes values into tokenizer_config.json."""

    def change(folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def in_a_folder(folder: Path) -> None:
    """Write a template as one of several."""
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text(BROKEN)


TEMPLATES: dict[str, tuple[Callable[[Path], None], str]] = {
    "jinja": (lambda folder: (folder / "chat_template.jinja").write_text(f"a\n{BROKEN}") and None, "chat_template.jinja"),
    "json": (lambda folder: (folder / "chat_template.json").write_text(json.dumps({"chat_template": BROKEN})) and None,
             "chat_template.json"),
    "config": (in_config(chat_template=BROKEN), "tokenizer_config.json"),
    "one-of-several": (in_config(chat_template=[{"name": "default", "template": "{{ 1 }}"},
                                                {"name": "tools", "template": BROKEN}]), "tokenizer_config.json"),
    "folder": (in_a_folder, "tools.jinja"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "place"), TEMPLATES.values(), ids=TEMPLATES)
def test_broken_template(change: Callable[[Path], None], place: str, model: Path) -> None:
    """A template that jinja cannot read is named with its file and line, without running the model; loading goes well."""
    change(model)
    (failure,) = foreseen(Request(str(model), {}))
    assert failure.warning.startswith(f"talking with it will fail: its chat template ({place}) is broken in line ")
    assert "endfor" in failure.problem
    assert not failure.stops_loading


def test_unknown_filter(model: Path) -> None:
    """A filter that jinja does not have is such a mistake, and what transformers adds to jinja is none."""
    in_config(chat_template="{{ messages | frobnicate }}")(model)
    assert "frobnicate" in str(foreseen(Request(str(model), {}))[0])
    in_config(chat_template="{% generation %}{{ messages }}{% endgeneration %}{{ strftime_now('%d') }}")(model)
    assert foreseen(Request(str(model), {})) == ()


@pytest.mark.parametrize("content", ["{", "[1]"], ids=["no-json", "no-table"])
def test_damaged(content: str, model: Path) -> None:
    """A tokenizer.json that was cut off is named as what it is."""
    (model / "tokenizer.json").write_text(content)
    (failure,) = foreseen_of_text(model)
    assert failure.problem.startswith("tokenizer.json is no ")
    with pytest.raises(Exception):  # noqa: B017, PT011  (transformers' own)
        transformers.AutoTokenizer.from_pretrained(model)


def test_no_vocabulary(model: Path) -> None:
    """A tokenizer's config without its vocabulary makes a tokenizer that knows no word: what it reads is named."""
    (model / "tokenizer.json").unlink()
    in_config(tokenizer_class="Qwen2Tokenizer")(model)
    (failure,) = foreseen_of_text(model)
    assert "no vocabulary: Qwen2Tokenizer reads vocab.json or merges.txt or tokenizer.json" in failure.problem
    in_config(tokenizer_class="ByT5Tokenizer")(model)  # of bytes: it needs none
    assert list(foreseen_of_text(model)) == []
