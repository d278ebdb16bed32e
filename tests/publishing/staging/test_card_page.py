"""The card as a page: the same facts as the card, its pictures, and no foreign markup."""

from __future__ import annotations

import html
from dataclasses import replace
from pathlib import Path

from click.testing import CliRunner
from one_file import loads_nothing
from publishing.variant import BASE, evidence, fidelity

from safe_dtype.cli import cli
from safe_dtype.publishing.staging.card_page import card_page
from safe_dtype.publishing.staging.evidence import LayerRange, read_evidence

EXAMPLE = Path(__file__).resolve().parents[3] / "model_cards" / "examples" / "tiny-qwen3-fp16"
EVIL = "<script>alert(1)</script>"


def test_the_example() -> None:
    """The verdict, drift by position, ranges against the ends of dtypes, hashes and license of a real variant."""
    page = card_page(read_evidence(EXAMPLE))
    loads_nothing(page)
    words = html.unescape(page.replace("<wbr>", ""))
    for expected in (
        "Within the limit.", "KL from the reference at every position (nats", "float16 ends at 65,504", "plain transformers",
        "model.safetensors", "apache-2.0",
    ):  # fmt: skip
        assert expected in words
    assert page.count("<polyline") == 2


def test_what_comes_first_is_what_matters() -> None:
    """A variant that plain transformers computes wrongly says so before anything else."""
    needs = card_page(evidence(needs="safe_dtype", plain=fidelity("transformers", beyond="mean KL is 3 nats")))
    assert needs.index("It needs safe_dtype.") < needs.index("mean KL is 3 nats") < needs.index("<h2>")
    assert "Beyond the limit." in card_page(evidence(safe_dtype=fidelity("safe_dtype", beyond="mean KL is 3 nats")))


def test_foreign_names_are_text() -> None:
    """Names of repositories, layers, islands, gauges and licenses bring no markup along."""
    rescale = {"shifts": [{"gauge": EVIL, "bits": 8, "moves": []}], "folded": False}
    made = evidence(
        base=replace(BASE, repo=EVIL, revision=EVIL, license=EVIL, saved=EVIL), architecture=EVIL, islands=(EVIL,),
        ranges=(LayerRange(EVIL, 1.0, 2.0),), rescale=rescale, command=EVIL, device={"name": EVIL}, versions={EVIL: EVIL},
    )  # fmt: skip
    page = card_page(made)
    loads_nothing(page)
    assert "<script" not in page
    assert "1/256" in page


def test_the_command(tmp_path: Path) -> None:
    """`publish card --html` writes it beside the folder, and the card as ever."""
    folder = tmp_path / "staged"
    folder.mkdir()
    (folder / "safe_dtype.json").write_bytes((EXAMPLE / "safe_dtype.json").read_bytes())
    result = CliRunner().invoke(cli, ["publish", "card", str(folder), "--html", str(tmp_path / "card.html")])
    assert result.exit_code == 0, result.output
    loads_nothing((tmp_path / "card.html").read_text(encoding="utf-8"))
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "safe_dtype.json"]
