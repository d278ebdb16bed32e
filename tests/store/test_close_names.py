"""What is said of a path that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from safe_dtype.store.close_names import missing_part


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Return a folder with three models and a file."""
    for name in ("tiny-qwen3", "Tiny-Llama", "whisper"):
        (tmp_path / name).mkdir()
    (tmp_path / "notes.txt").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("tiny-qwne3", "there is no 'tiny-qwne3' in {}, but 'tiny-qwen3'"),
        ("tiny-qwne3/a/b", "there is no 'tiny-qwne3' in {}, but 'tiny-qwen3'"),
        ("TINY-LAMA", "there is no 'TINY-LAMA' in {}, but 'Tiny-Llama'"),
        ("bert", "there is no 'bert' in {}"),
        ("notes.txt/model", "{}/notes.txt is a file"),
    ],
)
def test_close(asked: str, words: str, models: Path) -> None:
    """The folder that is there is named, and what is in it with a name like the missing one."""
    assert str(missing_part(models / asked)) == words.format(models)


def test_relative(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path starts where the process is."""
    monkeypatch.chdir(models)
    assert str(missing_part(Path("wisper"))) == f"there is no 'wisper' in {models}, but 'whisper'"
