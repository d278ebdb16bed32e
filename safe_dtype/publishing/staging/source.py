"""Where a variant is made from: a repository, a folder, or what `optimize` left, all of them as a folder in the end."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ...checkpoints import read_checkpoint
from ...errors import CheckpointError
from ...facts import Where
from ...hub.repository import HubRepository
from ...optimizing.environment import files_in
from ...optimizing.nouns.record_file import FILE as OPTIMIZATION
from ...optimizing.nouns.record_file import read_record
from ...optimizing.serving.kept_original import original_files, require_original
from ...optimizing.serving.trust import require_paths
from ...store.contained import leads_out
from ...store.hashing import read_all, sha256_of
from .evidence import Base, Forms, not_publishable
from .forms import copy_onnx, forms_of, require_onnx
from .front_matter import read_front_matter

# Copied byte for byte: a tokenizer that is loaded and saved again is not always the same.
BESIDE = (
    "tokenizer*.json", "tokenizer.model*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt",
    "merges.txt", "*.tiktoken", "spiece.model", "*.bpe.model", "source.spm", "target.spm", "tekken.json",
    "generation_config.json", "chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja",
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "image_processor*.json",
    "LICENSE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_PICKLES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
_CARD = "README.md"


@dataclass(frozen=True, slots=True)
class VariantSource:
    """A folder with the weights, and what is known of where they came from."""

    weights: Path
    name: str  # without the places of this machine
    base: Base
    dtype: str | None = None  # what `optimize` chose
    optimized: Path | None = None  # the folder that it wrote
    downloaded: bool = False  # whether it is a repository of the Hub

    def beside(self) -> Iterator[str]:
        """Yield the files that go along as they are, by their paths in the folder."""
        for path in sorted(self.weights.rglob("*")):
            name = path.relative_to(self.weights).as_posix()
            if path.is_file() and any(fnmatch(name, pattern) for pattern in BESIDE):
                yield name

    def copy_beside(self, folder: Path) -> None:
        """Copy them into `folder`, over what saving has written of the same names."""
        for name in self.beside():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.weights / name, folder / name)
        if self.optimized is not None:
            shutil.copyfile(self.optimized / OPTIMIZATION, folder / OPTIMIZATION)
            copy_onnx(self.optimized, read_record(self.optimized), folder)

    def sha256(self) -> str | None:
        """Return one hash of everything that a local folder holds; None of a repository, which has a commit."""
        if self.downloaded:
            return None
        files = {
            name: path
            for name, path in files_in(self.weights).items()
            if not any(part.startswith(".") for part in Path(name).parts)
        }
        if self.optimized is not None:  # it has the hashes of the forms
            files[OPTIMIZATION] = self.optimized / OPTIMIZATION
        digests = sorted(read_all(files, sha256_of).items())
        return hashlib.sha256(json.dumps(digests).encode()).hexdigest()

    def forms(self) -> Forms | None:
        """Return what `optimize` found out, where it was at work before."""
        return None if self.optimized is None else forms_of(read_record(self.optimized))

    def without_places(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return plain values with the folder on this machine replaced by the source's name."""
        text = json.dumps(values)
        for place in {str(self.weights), str(self.weights.resolve())}:
            text = text.replace(json.dumps(place)[1:-1], self.name)
        replaced: dict[str, Any] = json.loads(text)
        return replaced


def source_of(
    source: str | os.PathLike[str], *, revision: str | None, base: str | None, license: str | None  # noqa: A002
) -> VariantSource:  # fmt: skip
    """Find the source, and download what it takes where it is a repository.

    Raises:
        CheckpointError: If it is neither, or cannot be read.
        NotOptimizedError: If it holds an `optimization.json` that is none, or that does not go with its files.
        NotPublishableError: If `license` is not what its card says, or a file that goes along is a link out of it.
    """
    folder = Path(source)
    if not folder.is_dir():
        repo = os.fspath(source)
        folder = _downloaded(repo, revision)
        return _whole(VariantSource(folder, repo, _base(folder, repo, folder.name, license), downloaded=True))
    named, _, commit = (base or "").partition("@")
    if not (folder / OPTIMIZATION).is_file():
        name = folder.resolve().name
        return _whole(VariantSource(folder, name, _base(folder, named or None, commit or None, license)))
    record = read_record(folder)
    require_paths(folder, record)
    original = folder / record.original
    if not (original / "config.json").is_file():
        problem = f"its original ({record.original}) is no folder that transformers loads"
        raise CheckpointError(folder.name, problem, "stage the model that it was made of")
    require_original(folder, record, original_files(folder, record))
    dtype = record.winner.dtype.name if record.winner else None
    base_of_it = _base(original, named or None, commit or None, license)
    return _whole(VariantSource(original, record.source, base_of_it, dtype, folder))


def _whole(source: VariantSource) -> VariantSource:
    """Return `source`, unless a file that goes along as it is would be read from somewhere else."""
    for name in source.beside():
        if leads_out(source.weights, name):
            happened = f"{name} is a link to something outside of {source.name}"
            raise not_publishable(source.weights, happened, "put the file itself in its place")
    if source.optimized is not None:
        require_onnx(source.optimized, read_record(source.optimized))
    return source


def _base(folder: Path, repo: str | None, revision: str | None, passed: str | None) -> Base:
    card = folder / _CARD
    of_card: Mapping[str, Any] = _front_matter_of(card) if card.is_file() else {}
    of_card = {name: value for name, value in of_card.items() if isinstance(value, str) and value}
    if passed and of_card.get("license", passed) != passed:
        happened = f"license={passed!r} was passed, and the card of the base says {of_card['license']!r}"
        raise not_publishable(folder, happened, "leave it out: a variant has the license of its base")
    return Base(
        repo=repo, revision=revision, license=of_card.get("license") or passed, license_name=of_card.get("license_name"),
        license_link=of_card.get("license_link"), pipeline_tag=of_card.get("pipeline_tag"),
    )  # fmt: skip


def _front_matter_of(card: Path) -> Mapping[str, Any]:
    # The keys are ASCII: a text in another encoding than UTF-8 does not hide them.
    return read_front_matter(card.read_text(encoding="utf-8", errors="replace"))


def _downloaded(repo: str, revision: str | None) -> Path:
    """Return the snapshot of a repository, named by its commit, with all that staging reads."""
    where = Where(repo, revision=revision)
    read_checkpoint(where)  # says in our words what is wrong with a name, a login or a file
    wanted = [*BESIDE, "config.json", _CARD]
    folder = HubRepository(where).snapshot(only=[*wanted, *_WEIGHTS])
    if not any(folder.glob("*.safetensors")):
        folder = HubRepository(where).snapshot(only=[*wanted, *_PICKLES])
    return folder
