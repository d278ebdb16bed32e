"""Keep the files of a model as they are, in OUT/original, and bring them back.

How each file is kept is written down with its hash, in OUT/original.json:

- A file below 1 MiB is copied: configs and tokenizers are what people edit, and editors write in place.
- A larger one shares its blocks with the source where the file system can do that (btrfs, XFS): that takes no space,
  and a change on one side does not reach the other.
- Otherwise it is a hard link: nothing is copied. The kept file stays when its source is deleted, or replaced by another
  file, which is how the Hub's downloads and safetensors write. It is lost when the source is changed in place
  (`open(file, "r+b")`, `torch.save` over it, a memory map that is written to): that changes the kept file as well.
  `restore` sees this by the hash and refuses. Pass `ways=(Way.COPY,)` where that may happen.
- Otherwise it is copied.

Permissions are never changed. Links of the Hub's cache are followed, so that real files are kept.
"""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from ..errors import BackupError, EnvironmentNotFitError, MissingShardError, NotRestorableError
from ..store import write_whole
from ..store.contained import is_relative
from ..store.hashing import Progress, sha256_of
from .environment import files_in, hashes

FOLDER = "original"
RECORD = "original.json"
SCHEMA = "safe_dtype.original/1"

_SMALL_BYTES = 2**20
LOCK = ".original.lock"
_ASIDE = ".original.part"  # below OUT; a run that was killed leaves it, and the next run deletes it
_FICLONE = 0x40049409  # <linux/fs.h>


class Way(str, Enum):
    """How a file is kept."""

    SHARED = "shared blocks"  # a copy that takes no space until either side is changed
    LINK = "hard link"  # one file under two names
    COPY = "copy"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class KeptFile:
    """One file of the original."""

    sha256: str
    bytes: int
    way: Way


@dataclass(frozen=True, slots=True)
class Backup:
    """The original as it is kept."""

    source: Path  # the folder that the files came from, absolute
    folder: Path  # the folder that they are kept in
    files: Mapping[str, KeptFile]  # by name relative to both, with "/"

    @property
    def bytes(self) -> int:
        """The size of the original."""
        return sum(file.bytes for file in self.files.values())

    @property
    def copied_bytes(self) -> int:
        """The space that the backup takes on the disk."""
        return sum(file.bytes for file in self.files.values() if file.way is Way.COPY)

    def __str__(self) -> str:
        return (
            f"{len(self.files)} files of {self.source} are kept in {self.folder}: {self.bytes:,} bytes, "
            f"{self.copied_bytes:,} of them copied"
        )


@dataclass(frozen=True, slots=True)
class Restored:
    """What restoring did: every file of the original is in one of the three."""

    to: Path
    right: tuple[str, ...]  # not touched
    replaced: tuple[str, ...]  # had been changed
    brought_back: tuple[str, ...]  # had been deleted

    def __str__(self) -> str:
        changes = [f"replaced {name}" for name in self.replaced] + [
            f"brought back {name}" for name in self.brought_back
        ]
        return f"{self.to}: {len(self.right)} files were right" + "".join(f", {change}" for change in changes)


def back_up(
    source: Path,
    out: Path,
    *,
    ways: tuple[Way, ...] = (Way.SHARED, Way.LINK, Way.COPY),
    progress: Progress | None = None,
) -> Backup:
    """Keep the files of `source`, a folder or one file, in `out`/original; where they are kept already, check that.

    The files are first made in a temporary folder and checked by size and hash; then that folder is renamed. `ways` are
    tried in turn for files from 1 MiB on; a file for which none works is copied. `progress` is called with the bytes
    of `source` that were read.

    Raises:
        BackupError: If `out` lies in `source` or the other way round, `source` is empty or changes meanwhile, or
            `out` holds the original of another model, of another state of it, or one that was damaged.
        EnvironmentNotFitError: If the disk has no room.
        MissingShardError: If a link in `source` leads nowhere.
        OSError: If a file cannot be read or written.
    """
    from filelock import FileLock  # slow to import

    _refuse_overlap(source, out)
    out.mkdir(parents=True, exist_ok=True)
    # Two runs at a time: the second one finds what the first one has kept.
    with FileLock(out / LOCK):
        if (out / FOLDER).exists():
            return _kept_already(source, out, hashes(source, progress=progress))
        return _keep(source, out, ways, hashes(source, progress=progress))


def restore(out: Path, *, to: Path | None = None, progress: Progress | None = None) -> Restored:
    """Bring back the files of the original that were changed or deleted, in their own folder or in `to`.

    Every kept file is checked against the record first. Files that are right are not touched, and files that are not of
    the original stay. A link is never written through: where its file was changed, the link is replaced by a file (the
    Hub's cache reads that as well; its damaged blob stays). What is brought back is a copy, never a hard link.

    Raises:
        NotRestorableError: If there is no record, a kept file is not what the record says, or (without `to`) the
            backup is not at the place where it was made. Nothing was written then.
        EnvironmentNotFitError: If the disk has no room.
        OSError: If a file cannot be written; each file is either as it was before or as it is in the original.
    """
    backup = read_backup(out)
    if not backup.folder.is_dir():
        raise NotRestorableError(f"{backup.folder} is gone", "download the model again")
    if to is None and not _made_here(out):
        # Otherwise a folder from somebody else could decide which files are replaced here.
        raise NotRestorableError(
            f"{out / FOLDER} was made elsewhere, or moved, so that {backup.source} may not be its source",
            "look at the files, and name the folder to restore to",
        )
    target = backup.source if to is None else to
    damaged = _damage(backup, progress)
    damaged += [
        f"{name} cannot be written: a folder is in its place, or a file in that of its folder"
        for name in backup.files
        if _in_the_way(target, name)
    ]
    if damaged:
        raise NotRestorableError(
            "; ".join(damaged), "download the model again, or restore by hand the files that are not named here"
        )
    right: list[str] = []
    replaced: list[str] = []
    brought_back: list[str] = []
    for name, recorded in backup.files.items():
        file = target / name
        there = file.is_file()
        if there and file.stat().st_size == recorded.bytes and sha256_of(file) == recorded.sha256:
            right.append(name)
            continue
        _copy_in(backup.folder / name, file, recorded)
        (replaced if there else brought_back).append(name)
    return Restored(target, tuple(right), tuple(replaced), tuple(brought_back))


def read_backup(out: Path) -> Backup:
    """Read the record of the original that is kept in `out`. Does not check the files.

    Raises:
        NotRestorableError: If there is none, or none that can be read.
    """
    record = _record(out)
    try:
        files = {
            str(name): KeptFile(str(facts["sha256"]), int(facts["bytes"]), Way(facts["way"]))
            for name, facts in record["files"].items()
        }
        source = Path(record["source"])
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise NotRestorableError(f"{out / RECORD} is no record of a backup ({exc!r})", "name another folder") from exc
    if leading_out := [name for name in files if not Path(name).parts or not is_relative(name)]:
        raise NotRestorableError(
            f"{out / RECORD} names files outside of the model: {', '.join(leading_out)}", "do not trust this folder"
        )
    return Backup(source, out / FOLDER, files)


def _keep(source: Path, out: Path, ways: tuple[Way, ...], expected: Mapping[str, str]) -> Backup:
    if not expected:
        raise BackupError(f"{source} has no files", "name the folder of a model")
    aside = out / _ASIDE
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir()
        placed = {name: _place(file, aside / name, ways) for name, file in files_in(source).items()}
        # Read back from the disk, links too: this also finds files that were written to meanwhile.
        if hashes(aside) != expected:
            raise BackupError(f"{source} changes while it is read", "wait until nothing writes to it")
        files = {
            name: KeptFile(expected[name], (aside / name).stat().st_size, way) for name, way in sorted(placed.items())
        }
        backup = Backup(_folder_of(source), out / FOLDER, files)
        # The record first: the next run refuses a folder without one.
        _write_record(out / RECORD, backup, inode=aside.stat().st_ino)
        aside.rename(out / FOLDER)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return backup


def _place(file: Path, place: Path, ways: tuple[Way, ...]) -> Way:
    """Keep one file in the first way that is possible."""
    place.parent.mkdir(parents=True, exist_ok=True)
    real = file.resolve()  # a hard link to a symbolic link would be a symbolic link
    size = real.stat().st_size
    for way in ways if size >= _SMALL_BYTES else ():
        if way is Way.COPY:
            break
        try:
            _CHEAPLY[way](real, place)
        except OSError:  # another file system, one without such links, or a file of another user
            place.unlink(missing_ok=True)
        else:
            return way
    _require_room(place.parent, size)
    shutil.copy2(real, place)
    return Way.COPY


def _link(real: Path, place: Path) -> None:
    place.hardlink_to(real)


def _share(real: Path, place: Path) -> None:
    if sys.platform != "linux":
        raise OSError("only Linux has FICLONE")
    import fcntl

    with real.open("rb") as source, place.open("xb") as target:
        fcntl.ioctl(target.fileno(), _FICLONE, source.fileno())
    shutil.copystat(real, place)


_CHEAPLY: dict[Way, Callable[[Path, Path], None]] = {Way.SHARED: _share, Way.LINK: _link}


def _kept_already(source: Path, out: Path, now: Mapping[str, str]) -> Backup:
    try:
        backup = read_backup(out)
    except NotRestorableError as exc:
        raise BackupError(f"{out / FOLDER} is there already, and {exc.problem}", "name another output folder") from exc
    if backup.source != _folder_of(source):
        raise BackupError(f"{out} keeps the original of {backup.source}", "name another output folder")
    if damaged := _damage(backup):
        raise BackupError("; ".join(damaged), "name another output folder, or remove this one")
    recorded = {name: file.sha256 for name, file in backup.files.items()}
    if changed := sorted(name for name in recorded.keys() | now.keys() if recorded.get(name) != now.get(name)):
        raise BackupError(
            f"{source} is no longer what is kept in {out} ({', '.join(changed)} changed, came or went)",
            "restore it, or name another output folder",
        )
    return backup


def _damage(backup: Backup, progress: Progress | None = None) -> list[str]:
    """Return what is wrong with the kept files, a text for each."""
    try:
        present = hashes(backup.folder, progress=progress)
    except (FileNotFoundError, MissingShardError) as exc:
        return [str(exc)]
    texts = []
    for name, recorded in backup.files.items():
        file = backup.folder / name
        if name not in present:
            texts.append(f"{name} is missing in the backup")
        elif file.is_symlink():
            texts.append(f"{name} is a link in the backup, which holds real files only")
        elif present[name] != recorded.sha256:
            in_place = " (it is kept as a hard link: somebody wrote into the file itself)" * (recorded.way is Way.LINK)
            texts.append(f"{name} is not what was kept{in_place}")
    return texts


def _copy_in(kept_file: Path, file: Path, expected: KeptFile) -> None:
    """Put a copy of `kept_file` in the place of `file`, once the copy is checked."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.restoring")
    try:
        _require_room(file.parent, expected.bytes)
        aside.unlink(missing_ok=True)
        shutil.copy2(kept_file, aside)
        if sha256_of(aside) != expected.sha256:
            raise OSError(errno.EIO, "what was written is not what is kept", str(file))
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)


def _refuse_overlap(source: Path, out: Path) -> None:
    target, origin = out.resolve(), source.resolve()
    if target == origin or origin in target.parents:
        raise BackupError(f"{out} lies in {source}, which must stay as it is", "name a folder outside of it")
    if target / FOLDER in (origin, *origin.parents):
        raise BackupError(f"{source} is itself what is kept in {out}", "name another output folder")


def _require_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise EnvironmentNotFitError(
            f"room on the disk of {folder}: {needed:,} bytes are needed, {free:,} are free",
            "free some, or name an output folder on the disk of the source, where large files are linked",
        )


def _in_the_way(target: Path, name: str) -> bool:
    """Whether a folder is in the place of the file, or a file in the place of one of its folders."""
    file = target / name
    above = [target, *(target / one for one in list(Path(name).parents)[:-1])]
    return (file.exists() and not file.is_file()) or any(one.exists() and not one.is_dir() for one in above)


def _folder_of(source: Path) -> Path:
    return (source if source.is_dir() else source.parent).absolute()


def _made_here(out: Path) -> bool:
    """Whether OUT/original is the very folder that the record was written for: a copy of it has another inode."""
    return bool(_record(out).get("inode") == (out / FOLDER).stat().st_ino)


def _record(out: Path) -> dict[str, Any]:
    try:
        read = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise NotRestorableError(f"there is no {out / RECORD}", "name the output folder of an optimization") from exc
    except ValueError as exc:
        raise NotRestorableError(f"{out / RECORD} cannot be read ({exc})", "name another folder") from exc
    if not isinstance(read, dict) or read.get("schema") != SCHEMA:
        raise NotRestorableError(f"{out / RECORD} is not of the schema {SCHEMA}", "name another folder")
    return read


def _write_record(file: Path, backup: Backup, *, inode: int) -> None:
    record = {
        "schema": SCHEMA,
        "source": str(backup.source),
        "inode": inode,
        "files": {name: asdict(kept_file) for name, kept_file in backup.files.items()},
    }
    write_whole(file, json.dumps(record, indent=2) + "\n")
