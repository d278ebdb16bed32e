"""Where a variant is staged by default: one folder for each source, state of it, target and wish."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from publishing.loopback import LoopbackHub

from safe_dtype.publishing.publish_variant import staging_folder
from safe_dtype.publishing.release import Target
from safe_dtype.publishing.staging.reuse import source_state

TARGET = Target("org/model-fp16", "main", public=False)


def place(source: str | Path, **options: Any) -> Path:
    """Return where `source` is staged as it is now."""
    return staging_folder(source, TARGET, options, source_state(source, options))


def test_moved_main(hub: LoopbackHub) -> None:
    """A repository whose main has moved is staged anew; by its commit it is found again."""
    first = hub.push("org/model", {"config.json": b"{}"})
    before = place("org/model")
    assert place("org/model", source_revision=first) == place("org/model") == before
    hub.push("org/model", {"config.json": b"{} "})
    assert place("org/model") != before
    assert place("org/model", source_revision=first) == before


def test_folder(tmp_path: Path) -> None:
    """A folder whose files were changed is staged anew, also where size and times are as before."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "sub/chat.jinja").write_text("a")
    before = place(tmp_path)
    assert place(tmp_path) == before
    (tmp_path / "sub/chat.jinja").write_text("b")
    assert place(tmp_path) != before


def test_wishes(tmp_path: Path) -> None:
    """What is asked for has a folder of its own; what is left open counts as not asked for."""
    (tmp_path / "config.json").write_text("{}")
    assert place(tmp_path, dtype=None) == place(tmp_path)
    assert len({place(tmp_path), place(tmp_path, dtype="float16"), place(tmp_path, dtype="bfloat16")}) == 3
