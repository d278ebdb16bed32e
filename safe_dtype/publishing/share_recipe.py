"""Put a recipe on the Hub: one small file for each digest of the weights, in one commit, read back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import PublishError
from ..facts.recipe import Recipe, recipe_path
from ..hub.client import Commit, Head, Hub
from ..hub.errors import HubError
from ..hub.remote_files import Tree
from ..store.temporary import temporary_folder
from .publish_error import publish_error
from .pushing.commit import Landed, land
from .release import State, Target
from .staging.manifest import manifest_of

_CARD = "README.md"
_CARD_TEXT = """---
tags: [safe-dtype-recipes]
---

# Recipes of safe_dtype

What it takes to run the weights of some models in float16: which powers of two are moved between layers, and how far the
results drift. Each file is for the weights whose digest is its name. They are data, and nothing of them is executed:
safe_dtype proves each on the model before it uses it.

    SAFE_DTYPE_RECIPES=org/name  # this repository
    SafeAutoModelForCausalLM.from_pretrained(model, policy="recipes=use")
"""


@dataclass(frozen=True, slots=True)
class Shared:
    """A recipe that is on the Hub."""

    repo: str
    oid: str  # of the commit that holds it
    paths: tuple[str, ...]
    private: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain values of JSON."""
        return {"repo": self.repo, "commit": self.oid, "paths": list(self.paths), "private": self.private}

    def __str__(self) -> str:
        who = "it is private: others need access" if self.private else "anybody can use it with recipes=" + self.repo
        return f"shared: {self.repo} at {self.oid[:12]}, {self.paths[0]}; {who}"


def share_recipe(recipe: Recipe, repo: str, *, api: Hub) -> Shared:
    """Add a recipe to `repo`, a repository of recipes; a new one is made, private. Nothing else there is changed.

    Raises:
        PublishError: If it is not there afterwards, or that cannot be read; `state` says how things stand.
    """
    target = Target(repo)
    text = json.dumps(recipe.to_dict(), indent=1, allow_nan=False) + "\n"
    with temporary_folder("safe_dtype-recipe-") as folder:
        paths = [recipe_path(key) for key in recipe.weights]
        head = _head(api, target)
        try:
            tree = api.tree(repo, head.oid)
        except HubError as error:
            raise publish_error(api, error, State.NOT_STARTED, target, "what was there before") from error
        for path, content in {**dict.fromkeys(paths, text), **({} if _CARD in tree else {_CARD: _CARD_TEXT})}.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(content, encoding="utf-8", newline="\n")
        oid = _committed(api, target, folder, head.oid, tree)
        return Shared(repo, oid, tuple(paths), head.private)


def _head(api: Hub, target: Target) -> Head:
    """Return the head of the repository, which is made where it is not there."""
    try:
        try:
            return api.head(target.repo, target.revision)
        except HubError as error:
            if error.missing != "repository":
                raise
        api.create_repo(target.repo)
        return api.head(target.repo, target.revision, just_made=True)
    except HubError as error:
        raise publish_error(api, error, State.NOT_STARTED, target, "what was there before") from error


def _committed(api: Hub, target: Target, folder: Path, head: str, tree: Tree) -> str:
    """Make the commit, unless all is there already, and return the commit that holds it."""
    manifest = manifest_of(folder)

    def holds(now: Tree) -> bool:
        return all(path in now and now[path].holds(digest) for path, digest in manifest.items())

    if holds(tree):
        return head
    try:
        api.require_write(target.repo)
        additions = api.additions(folder, manifest, manifest)
        api.upload(target.repo, target.revision, additions, lambda *_: None)
    except HubError as error:
        raise publish_error(api, error, State.NOT_PUBLISHED, target, "what was there before") from error
    commit = Commit(target.repo, target.revision, "Add a recipe (safe_dtype)", head, additions=additions)
    landing = land(api, commit, holds=holds)
    if not isinstance(landing, Landed):
        raise publish_error(api, landing.error, landing.state, target, "what was there before")
    try:
        is_there = holds(api.tree(target.repo, landing.oid, just_made=True))
    except HubError as error:
        visible = f"the new commit {landing.oid[:12]}, which could not be read back"
        raise publish_error(api, error, State.UNVERIFIED, target, visible) from error
    if not is_there:
        happened = "what the Hub gives back is not what was sent"
        raise PublishError(
            str(State.BROKEN), str(target), happened, f"the new commit {landing.oid[:12]}", "share again"
        )
    return landing.oid
