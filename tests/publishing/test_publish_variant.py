"""From a model to the Hub in one call: what is asked for is what is published, whatever was staged before."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from huggingface_hub import HfApi
from publishing.client import in_child
from publishing.loopback import LoopbackHub
from publishing.variant import staged
from safetensors.torch import load
from tiny_models import TINY

from safe_dtype import publish
from safe_dtype.errors import GatedCheckpointError, NotPublishableError
from safe_dtype.hub.client import Hub
from safe_dtype.publishing.publish_variant import staged_for
from safe_dtype.publishing.release import State, Target
from safe_dtype.publishing.staging.check import check

BASE, VARIANT = "org/base", "org/base-fp16"


def pushed_base(hub: LoopbackHub, folder: Path, *, license: str = "mit", scale: float = 1.0) -> str:  # noqa: A002
    """Put a tiny model on the Hub, or another state of it; return the commit."""
    torch.manual_seed(0)
    model = TINY["qwen3"].make().eval()
    with torch.no_grad():
        model.model.norm.weight.mul_(scale)
    model.save_pretrained(folder)
    card = f"---\nlicense: {license}\n---\n# Base\n".encode()
    return hub.push(BASE, {**{path.name: path.read_bytes() for path in folder.iterdir()}, "README.md": card})


def norm_of(hub: LoopbackHub, repo: str = VARIANT) -> float:
    """Return the weight of the last norm, as it was published: what a base is scaled by."""
    return float(load(hub.files(repo)["model.safetensors"])["model.norm.weight"][0])


def base_of(hub: LoopbackHub, repo: str = VARIANT) -> tuple[str, str]:
    """Return commit and license that a published variant says it was made of."""
    base = json.loads(hub.files(repo)["safe_dtype.json"])["base"]
    return base["revision"], base["license"]


def commits_of_ours(hub: LoopbackHub, repo: str = VARIANT) -> int:
    """Return how often it was published."""
    return sum(title.startswith("safe-dtype: publish ") for _, title in hub.commits(repo))


# A folder that is staged already


def test_another_dtype_than_the_staged_one(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    """What is staged in float16 is not published as bfloat16: nothing is sent, and nothing is asked of the Hub."""
    folder = staged(tmp_path / "stage")
    with pytest.raises(NotPublishableError, match="it is in float16, and dtype='bfloat16' is asked for") as raised:
        publish(folder, "org/model-bf16", dtype="bfloat16", public=True, api=Hub(api))
    assert raised.value.state == str(State.NOT_STARTED)
    assert hub.requests == []
    assert publish(folder, "org/model-fp16", dtype="float16", public=True, api=Hub(api)).state is State.PUBLISHED


def test_two_targets_at_once(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    """One folder that goes to two repositories at a time gives each the card that names it."""
    folder, repos, ready = staged(tmp_path / "stage"), ("org/first-fp16", "org/second-fp16"), Barrier(2)

    def published(repo: str) -> State:
        ready.wait()
        return publish(folder, repo, public=True, api=Hub(api)).state

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(published, repos)) == [State.PUBLISHED] * 2
    for repo in repos:
        assert f'from_pretrained("{repo}"' in hub.files(repo)["README.md"].decode()


def test_card_of_others(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    """A README that is there keeps its text and its line ends; one that cannot be read is refused, and stays."""
    hub.push("org/theirs", {"README.md": b"\xef\xbb\xbf---\r\nlanguage: de\r\n---\r\n# Theirs\r\n"})
    folder = staged(tmp_path / "stage")
    assert publish(folder, "org/theirs", public=True, api=Hub(api)).state is State.PUBLISHED
    card = hub.files("org/theirs")["README.md"].decode()
    assert card.startswith("---\r\nlanguage: de\r\nbase_model: org/model\r\n")
    assert "---\r\n# Theirs\r\n\r\n<!-- safe_dtype:begin -->\r\n" in card
    assert publish(folder, "org/theirs", public=True, api=Hub(api)).state is State.PUBLISHED
    assert commits_of_ours(hub, "org/theirs") == 1
    latin = {"README.md": "# Größe\n".encode("latin-1")}
    hub.push("org/latin", latin)
    with pytest.raises(NotPublishableError, match=r"README\.md that is there is no UTF-8"):
        publish(folder, "org/latin", public=True, api=Hub(api))
    assert hub.files("org/latin")["README.md"] == latin["README.md"]


def test_gated_base(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gated base that this login may not read is an error of the base, before anything is made or sent."""
    hub.create("other/gated", gated=True)
    hub.push("other/gated", {"config.json": b"{}", "model.safetensors": b"x"})
    with pytest.raises(GatedCheckpointError, match="other/gated"):
        publish("other/gated", VARIANT, dtype="float16", public=True)
    assert VARIANT not in hub.repositories
    assert all(method in ("GET", "HEAD") for method, _ in hub.requests)


@pytest.mark.parametrize("named", [True, False], ids=["a-folder-of-it", "the-repository"])
def test_gated_base_before_the_expensive_part(hub: LoopbackHub, tmp_path: Path, *, named: bool) -> None:
    """A base that may be read and is gated is refused before the model is loaded and measured, not after."""
    pushed_base(hub, tmp_path / "base")
    hub.repositories[BASE].gated = True
    begun: list[str] = []
    source, options = (tmp_path / "base", {"base": BASE}) if named else (BASE, {})
    target = Target(VARIANT, public=True)
    with (
        pytest.raises(NotPublishableError, match=f"access to its base {BASE} must be asked for"),
        staged_for(source, target, folder=tmp_path / "stage", options=options, tell=begun.append, api=Hub.connect()),
    ):
        pytest.fail("staged for nothing")
    assert begun == []
    assert not (tmp_path / "stage").exists()


def test_without_a_cache(hub: LoopbackHub, api: HfApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no lock can be made, a staged folder is published all the same."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "file"))
    receipt = publish(staged(tmp_path / "stage"), VARIANT, api=Hub(api))
    assert receipt.state is State.PUBLISHED


# A base that moves on


@pytest.mark.slow
@pytest.mark.parametrize("named", [True, False], ids=["in-a-folder-of-ones-own", "in-the-cache"])
def test_base_moves_on(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool) -> None:
    """A new commit of the base is staged anew, and published; the same commit is not staged again."""
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "stage" if named else None

    def again() -> None:
        receipt = publish(BASE, VARIANT, dtype="float16", public=True, folder=place)
        assert receipt.state is State.PUBLISHED

    first = pushed_base(hub, tmp_path / "base")
    again()
    assert (norm_of(hub), base_of(hub)) == (1.0, (first, "mit"))
    again()
    assert commits_of_ours(hub) == 1
    second = pushed_base(hub, tmp_path / "base", scale=2.0)
    again()
    assert (norm_of(hub), base_of(hub)) == (2.0, (second, "mit"))
    third = pushed_base(hub, tmp_path / "base", license="apache-2.0", scale=2.0)
    again()
    assert base_of(hub) == (third, "apache-2.0")
    assert "license: apache-2.0" in hub.files(VARIANT)["README.md"].decode()
    if place is not None:
        assert check(place) == []
        (place / "config.json").write_text("{}")
        with pytest.raises(NotPublishableError, match=r"config\.json was changed since it was staged"):
            again()
        pushed_base(hub, tmp_path / "base", scale=3.0)
        with pytest.raises(NotPublishableError, match="files were changed since"):
            again()
        assert (place / "config.json").read_text() == "{}", "what somebody wrote there stays"


@pytest.mark.slow
def test_damaged_stage_of_ours(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder of the cache that was damaged is staged anew: nobody else would mend it."""
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "cache"))
    caplog.set_level(logging.INFO, logger="safe_dtype")
    pushed_base(hub, tmp_path / "base")
    publish(BASE, VARIANT, dtype="float16", public=True)
    (weights,) = (tmp_path / "cache/stage").glob("*/model.safetensors")
    for damage in (lambda: weights.write_bytes(b"half"), lambda: weights.with_name("safe_dtype.json").write_text("{")):
        damage()
        assert publish(BASE, VARIANT, dtype="float16", public=True).state is State.PUBLISHED
        assert "is staged anew" in caplog.text
        caplog.clear()
    assert commits_of_ours(hub) == 1
    assert norm_of(hub) == 1.0


_PUBLISH = """
import sys
from safe_dtype import publish
print(publish(sys.argv[1], sys.argv[2], dtype="float16", public=True).state)
"""


@pytest.mark.slow
def test_two_publishers_at_once(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that publish the same at the same time stage it once, and make one commit."""
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "cache"))
    pushed_base(hub, tmp_path / "base")
    run: Callable[[int], str] = lambda _: in_child(hub, _PUBLISH, BASE, VARIANT)  # noqa: E731
    with ThreadPoolExecutor(2) as pool:
        printed = [text.splitlines()[-1] for text in pool.map(run, range(2))]
    assert printed == ["published", "published"]
    assert commits_of_ours(hub) == 1
    assert len(list((tmp_path / "cache/stage").glob("*/safe_dtype.json"))) == 1
