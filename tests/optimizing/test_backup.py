"""The original is kept, and brought back: never in part, never from a backup that is wrong, never over what is right."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from safe_dtype.errors import BackupError, EnvironmentNotFitError, MissingShardError, NotRestorableError
from safe_dtype.optimizing import backup as module
from safe_dtype.optimizing.backup import Way, back_up, read_backup, restore
from safe_dtype.optimizing.environment import hashes

LARGE = 2**20  # bytes from which on a file is linked


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a small config, a small file in a subfolder, and large weights."""
    folder = tmp_path / "model"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "config.json").write_text('{"hidden_size": 8}')
    (folder / "tokenizer" / "vocab.txt").write_text("a\nb\n")
    save_file({"weight": torch.arange(LARGE // 4, dtype=torch.float32)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output folder that is not there yet, on the disk of the model."""
    return tmp_path / "out"


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A snapshot as in the Hub's cache: links to blobs."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for name, blob, content in (("config.json", "c0", b"{}"), ("model.safetensors", "w0", bytes(LARGE))):
        (blobs / blob).write_bytes(content)
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    return snapshot


def test_keeps_everything(model: Path, out: Path) -> None:
    """What is kept has the names and the hashes of the source, and the record says so."""
    kept = back_up(model, out)
    assert hashes(kept.folder) == hashes(model) == {name: file.sha256 for name, file in kept.files.items()}
    assert kept.folder == out / "original"
    assert set(kept.files) == {"config.json", "model.safetensors", "tokenizer/vocab.txt"}
    assert read_backup(out) == kept
    assert kept.bytes == sum((model / name).stat().st_size for name in kept.files)


def test_small_files_are_copies(model: Path, out: Path) -> None:
    """A config is copied though links are possible, so that an editor that writes in place does no harm."""
    kept = back_up(model, out, ways=(Way.LINK,))
    assert kept.files["config.json"].way is Way.COPY
    with (model / "config.json").open("r+") as stream:
        stream.write("{ broken")
    assert restore(out).replaced == ("config.json",)
    assert (model / "config.json").read_text() == '{"hidden_size": 8}'


def test_large_files_are_links(model: Path, out: Path) -> None:
    """Weights become hard links, which take no room, where the file system has no shared blocks."""
    kept = back_up(model, out, ways=(Way.LINK,))
    assert kept.files["model.safetensors"].way is Way.LINK
    assert (kept.folder / "model.safetensors").samefile(model / "model.safetensors")
    assert kept.copied_bytes == kept.bytes - (model / "model.safetensors").stat().st_size


def test_shared_blocks_or_the_next_way(model: Path, out: Path) -> None:
    """Where blocks can be shared the kept file is one of its own; where not, the next way is taken."""
    kept = back_up(model, out, ways=(Way.SHARED, Way.LINK))
    weights = kept.files["model.safetensors"]
    assert (weights.way is Way.LINK) == (kept.folder / "model.safetensors").samefile(model / "model.safetensors")


def test_copies_on_another_file_system(model: Path) -> None:
    """On another disk, where no link is possible, everything is copied."""
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == model.stat().st_dev:
        pytest.skip("there is no second file system here")
    out = elsewhere / f"safe_dtype-test-{os.getpid()}"
    try:
        kept = back_up(model, out)
        assert {file.way for file in kept.files.values()} == {Way.COPY}
        assert hashes(kept.folder) == hashes(model)
    finally:
        shutil.rmtree(out, ignore_errors=True)


def test_source_is_untouched(model: Path, out: Path) -> None:
    """Neither content nor permissions nor times of the source change."""
    (model / "config.json").chmod(0o444)

    def state() -> dict[str, tuple[int, int]]:
        return {str(one): (one.stat().st_mode, one.stat().st_mtime_ns) for one in model.rglob("*")}

    before, content = state(), hashes(model)
    back_up(model, out)
    assert (state(), hashes(model)) == (before, content)


def test_second_run(model: Path, out: Path) -> None:
    """A second run finds what is kept, and writes nothing."""
    first = back_up(model, out)
    times = {one: one.stat().st_mtime_ns for one in out.rglob("*") if one.is_file() and one.suffix != ".lock"}
    assert back_up(model, out) == first
    assert times == {one: one.stat().st_mtime_ns for one in out.rglob("*") if one.is_file() and one.suffix != ".lock"}


def test_first_state_is_not_overwritten(model: Path, out: Path) -> None:
    """After the source has changed, a second run refuses: the first original stays what it was."""
    first = back_up(model, out)
    (model / "config.json").write_text("{}")
    with pytest.raises(BackupError, match=r"no longer what is kept.*config\.json"):
        back_up(model, out)
    assert hashes(first.folder) == {name: file.sha256 for name, file in first.files.items()}


def test_another_model(model: Path, out: Path, hub: Path) -> None:
    """An output folder that keeps one model takes no other."""
    back_up(model, out)
    with pytest.raises(BackupError, match="keeps the original of"):
        back_up(hub, out)


def test_foreign_folder(model: Path, out: Path) -> None:
    """A folder `original` that was not made here is neither taken for a backup nor written to."""
    (out / "original").mkdir(parents=True)
    (out / "original" / "mine.txt").write_text("mine")
    with pytest.raises(BackupError, match="is there already"):
        back_up(model, out)
    assert [one.name for one in (out / "original").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("where", [".", "optimized", "tokenizer/deep"])
def test_never_into_the_source(model: Path, where: str) -> None:
    """An output folder that is the source, or lies in it, is refused before anything is written."""
    before = sorted(model.rglob("*"))
    with pytest.raises(BackupError, match="must stay as it is"):
        back_up(model, model / where)
    assert sorted(model.rglob("*")) == before


def test_never_into_the_source_by_a_link(model: Path, tmp_path: Path) -> None:
    """A link that leads into the source is seen through."""
    (tmp_path / "link").symlink_to(model)
    with pytest.raises(BackupError, match="must stay as it is"):
        back_up(model, tmp_path / "link" / "out")


def test_source_in_the_backup(model: Path, out: Path) -> None:
    """The kept files are not kept again in their own folder."""
    kept = back_up(model, out)
    with pytest.raises(BackupError, match="itself what is kept"):
        back_up(kept.folder, out)


def test_empty_source(tmp_path: Path, out: Path) -> None:
    """A folder without files is no model, and leaves no backup."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(BackupError, match="has no files"):
        back_up(tmp_path / "empty", out)
    assert not (out / "original").exists()


def test_one_file(model: Path, out: Path) -> None:
    """A model that is one file is kept and brought back as one, its neighbours are not looked at."""
    kept = back_up(model / "model.safetensors", out)
    assert list(kept.files) == ["model.safetensors"]
    (model / "model.safetensors").unlink()
    (model / "config.json").write_text("mine")
    assert restore(out).brought_back == ("model.safetensors",)
    assert (model / "config.json").read_text() == "mine"


def test_left_by_a_killed_run(model: Path, out: Path) -> None:
    """What a run that was killed left aside is no backup, and the next run clears it away."""
    left = out / ".original.part"
    left.mkdir(parents=True)
    (left / "half.bin").write_bytes(b"half")
    kept = back_up(model, out)
    assert "half.bin" not in hashes(kept.folder)
    assert not left.exists()


def test_hub_links_are_resolved(hub: Path, out: Path) -> None:
    """Of the Hub's cache the blobs are kept, as real files."""
    kept = back_up(hub, out)
    assert not any(one.is_symlink() for one in kept.folder.rglob("*"))
    assert hashes(kept.folder) == hashes(hub)
    if kept.files["model.safetensors"].way is Way.LINK:
        assert (kept.folder / "model.safetensors").samefile(hub.parent.parent / "blobs" / "w0")


def test_broken_download(hub: Path, out: Path) -> None:
    """A link whose blob is missing is told as such; no backup of the rest is made."""
    (hub.parent.parent / "blobs" / "w0").unlink()
    with pytest.raises(MissingShardError, match=r"model\.safetensors"):
        back_up(hub, out)
    assert not (out / "original").exists()


def test_no_room(model: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk without room is told before it is filled, and leaves no backup."""
    usage = shutil.disk_usage(model)._replace(free=100)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(EnvironmentNotFitError, match="room on the disk"):
        back_up(model, out, ways=())
    assert not (out / "original").exists()
    assert not (out / ".original.part").exists()


def test_restore_touches_only_what_is_wrong(model: Path, out: Path) -> None:
    """Changed and deleted files come back, right ones keep their times, new ones stay."""
    before = hashes(model)
    back_up(model, out)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").unlink()
    (model / "notes.txt").write_text("mine")
    vocab = (model / "tokenizer" / "vocab.txt").stat()
    done = restore(out)
    assert done.replaced == ("config.json",)
    assert done.brought_back == ("model.safetensors",)
    assert done.right == ("tokenizer/vocab.txt",)
    assert (model / "tokenizer" / "vocab.txt").stat() == vocab
    assert (model / "notes.txt").read_text() == "mine"
    assert before.items() <= hashes(model).items()
    assert restore(out).right == tuple(sorted(before))


def test_restore_a_deleted_folder(model: Path, out: Path) -> None:
    """A source that was removed as a whole comes back as a whole."""
    before = hashes(model)
    back_up(model, out)
    shutil.rmtree(model)
    assert len(restore(out).brought_back) == 3
    assert hashes(model) == before


def test_restored_files_are_copies(model: Path, out: Path) -> None:
    """What was brought back shares nothing with the backup: writing into it does no harm."""
    kept = back_up(model, out)
    (model / "model.safetensors").unlink()
    restore(out)
    assert not (model / "model.safetensors").samefile(kept.folder / "model.safetensors")


def test_restore_elsewhere(model: Path, out: Path, tmp_path: Path) -> None:
    """With `to`, another folder gets the original, and the source is left alone."""
    back_up(model, out)
    (model / "config.json").write_text("{}")
    restore(out, to=tmp_path / "fresh")
    assert hashes(tmp_path / "fresh") == {name: file.sha256 for name, file in read_backup(out).files.items()}
    assert (model / "config.json").read_text() == "{}"


def test_replaced_weights_survive_as_links(model: Path, out: Path) -> None:
    """A hard link outlives that the source's file is replaced by another one, as downloads do."""
    before = hashes(model)
    back_up(model, out, ways=(Way.LINK,))
    (model / "new").write_bytes(b"other weights")
    (model / "new").replace(model / "model.safetensors")
    assert restore(out).replaced == ("model.safetensors",)
    assert hashes(model) == before


def test_hard_link_changed_in_place(model: Path, out: Path) -> None:
    """Weights that were written into through a hard link are found by the hash, named, and nothing is restored."""
    back_up(model, out, ways=(Way.LINK,))
    (model / "config.json").write_text("{}")
    with (model / "model.safetensors").open("r+b") as stream:
        stream.seek(-4, os.SEEK_END)
        stream.write(b"oops")
    with pytest.raises(
        NotRestorableError, match=r"model\.safetensors is not what was kept \(it is kept as a hard link"
    ):
        restore(out)
    assert (model / "config.json").read_text() == "{}"
    with pytest.raises(BackupError, match="hard link"):
        back_up(model, out)


def test_copy_outlives_writing_in_place(model: Path, out: Path) -> None:
    """Weights that are kept as a copy come back after they were written into."""
    before = hashes(model)
    back_up(model, out, ways=(Way.COPY,))
    torch.save({"weight": torch.zeros(3)}, model / "model.safetensors")
    assert restore(out).replaced == ("model.safetensors",)
    assert hashes(model) == before


@pytest.mark.parametrize("damage", ["changed", "deleted", "link", "gone"])
def test_damaged_backup(model: Path, out: Path, damage: str) -> None:
    """A backup with one wrong file is an error, and no other file is written."""
    kept = back_up(model, out)
    (model / "tokenizer" / "vocab.txt").unlink()
    config = kept.folder / "config.json"
    if damage == "gone":
        shutil.rmtree(kept.folder)
    elif damage == "changed":
        config.write_text("{}")
    else:
        config.unlink()
    if damage == "link":
        config.symlink_to(model / "config.json")  # of the right hash
    with pytest.raises(NotRestorableError, match=r"config\.json|is gone"):
        restore(out)
    assert not (model / "tokenizer" / "vocab.txt").exists()


def test_folder_in_the_way(model: Path, out: Path) -> None:
    """A folder in the place of a file is not removed, and no other file is written."""
    back_up(model, out)
    (model / "tokenizer" / "vocab.txt").unlink()
    (model / "config.json").unlink()
    (model / "config.json").mkdir()
    with pytest.raises(NotRestorableError, match=r"config\.json cannot be written"):
        restore(out)
    assert not (model / "tokenizer" / "vocab.txt").exists()


def test_links_are_not_written_through(model: Path, out: Path, tmp_path: Path) -> None:
    """A file that was replaced by a link becomes a file again, and what the link led to stays."""
    back_up(model, out)
    (tmp_path / "precious.txt").write_text("precious")
    (model / "config.json").unlink()
    (model / "config.json").symlink_to(tmp_path / "precious.txt")
    assert restore(out).replaced == ("config.json",)
    assert not (model / "config.json").is_symlink()
    assert (tmp_path / "precious.txt").read_text() == "precious"


def test_moved_backup(model: Path, out: Path, tmp_path: Path) -> None:
    """A copy of a backup, which may be a stranger's, restores only to a folder that the caller names."""
    back_up(model, out)
    (model / "config.json").unlink()
    shutil.copytree(out, tmp_path / "downloaded")
    with pytest.raises(NotRestorableError, match="made elsewhere"):
        restore(tmp_path / "downloaded")
    assert not (model / "config.json").exists()
    assert restore(tmp_path / "downloaded", to=model).brought_back == ("config.json",)


@pytest.mark.parametrize("name", ["../outside.txt", "/tmp/outside.txt", "a/../../outside.txt", "", "bad\0name"])
def test_names_that_lead_out(model: Path, out: Path, name: str) -> None:
    """A record that names files outside of the model is refused."""
    back_up(model, out)
    record = json.loads((out / "original.json").read_text())
    record["files"][name] = record["files"]["config.json"]
    (out / "original.json").write_text(json.dumps(record))
    with pytest.raises(NotRestorableError, match="outside of the model"):
        restore(out)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": "safe_dtype.original/1"}', '{"schema": "other/1", "files": {}}']
)
def test_bad_record(model: Path, out: Path, text: str) -> None:
    """A record that is no record is an error of ours, with a next step."""
    back_up(model, out)
    (out / "original.json").write_text(text)
    with pytest.raises(NotRestorableError, match="Next: name another folder"):
        restore(out)


def test_no_backup(out: Path) -> None:
    """Where nothing was kept, restoring says so."""
    with pytest.raises(NotRestorableError, match="there is no"):
        restore(out)


def test_progress(model: Path, out: Path) -> None:
    """Progress counts the bytes of the source up to all of them."""
    heard: list[tuple[int, int]] = []
    kept = back_up(model, out, progress=lambda done, total: heard.append((done, total)))
    assert heard[-1] == (kept.bytes, kept.bytes)
    assert heard == sorted(heard)
