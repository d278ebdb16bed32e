"""Whether a path that a file names stays in the folder of that file."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath


def is_relative(path: str) -> bool:
    """Whether `path` names something below the folder that it is relative to, in the notation of every system."""
    # What one system takes for a name is an absolute path for another.
    notations = (PurePosixPath(path), PureWindowsPath(path))
    return "\0" not in path and not any(one.anchor or ".." in one.parts for one in notations)


def leads_out(folder: Path, path: str) -> bool:
    """Whether `path`, below `folder`, is a link to something outside of it, or passes over one.

    The folder itself may be reached over links. In a download of the Hub's client every file is a link to a blob of the
    same repository, which counts as inside.
    """
    root, target = folder.resolve(), (folder / path).resolve()
    return not target.is_relative_to(root) and target.parent != _blobs_of(root)


def _blobs_of(root: Path) -> Path | None:
    """Return where the Hub's client keeps the files of a snapshot; None where `root` is no part of one."""
    snapshot = next((one for one in (root, *root.parents) if one.parent.name == "snapshots"), None)
    if snapshot is None or "--" not in snapshot.parent.parent.name:  # "models--org--name"
        return None
    return snapshot.parent.parent / "blobs"
