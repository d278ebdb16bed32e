"""Where a variant is staged by default: one folder for each source, state of it, target and wish."""

from __future__ import annotations

from pathlib import Path

from publishing.loopback import LoopbackHub

from safe_dtype.publishing.publish_variant import staging_folder
from safe_dtype.publishing.release import Target

TARGET = Target("org/model-fp16", "main", public=False)


def test_moved_main(hub: LoopbackHub) -> None:
    """A repository whose main has moved is staged anew; by its commit it is found again."""
    first = hub.push("org/model", {"config.json": b"{}"})
    before = staging_folder("org/model", TARGET, {})
    assert (
        staging_folder("org/model", TARGET, {})
        == staging_folder("org/model", TARGET, {"source_revision": first})
        == before
    )
    hub.push("org/model", {"config.json": b"{} "})
    assert staging_folder("org/model", TARGET, {}) != before
    assert staging_folder("org/model", TARGET, {"source_revision": first}) == before


def test_folder(tmp_path: Path) -> None:
    """A folder whose files were changed is staged anew."""
    (tmp_path / "config.json").write_text("{}")
    before = staging_folder(tmp_path, TARGET, {})
    assert staging_folder(tmp_path, TARGET, {}) == before
    (tmp_path / "config.json").write_text("{} ")
    assert staging_folder(tmp_path, TARGET, {}) != before
