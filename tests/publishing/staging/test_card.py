"""The card says what the evidence says, and leaves alone what others wrote."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import jinja2
import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from publishing.variant import BASE, evidence, fidelity, staged

from safe_dtype.errors import NotPublishableError
from safe_dtype.publishing.staging.card import BEGIN, END, block_of, card_problems, card_text, write_card
from safe_dtype.publishing.staging.evidence import (
    DtypeCount,
    Evidence,
    Forms,
    LayerRange,
    MeasuredOn,
    StagedFile,
    TriedForm,
    read_evidence,
)

EXAMPLES = sorted((Path(__file__).resolve().parents[3] / "model_cards" / "examples").glob("*/safe_dtype.json"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.parent.name)
def test_examples(example: Path) -> None:
    """The example cards are what their safe_dtype.json gives."""
    assert (example.parent / "README.md").read_text() == card_text(read_evidence(example.parent))


def test_there_are_examples() -> None:
    """There is one card in float16 at least."""
    assert any(path.parent.name.endswith("fp16") for path in EXAMPLES)


def test_yaml_as_the_hub_reads_it() -> None:
    """The Hub's own client reads our keys; license and base are those of the evidence."""
    made = replace(evidence(), base=replace(BASE, license="other", license_name="own", pipeline_tag="text-generation"))
    found = ModelCard(card_text(made)).data
    assert (found.base_model, found.base_model_relation, found.library_name) == (
        "org/model",
        "quantized",
        "transformers",
    )
    assert (found.license, found.license_name, found.pipeline_tag) == ("other", "own", "text-generation")
    assert found.tags == ["safe-dtype", "fp16"]


def test_a_row_for_each_loader() -> None:
    """What each loader does is a row, with what is not finite as words and the limit as a verdict."""
    drift = replace(fidelity("transformers").drift, kl_mean=math.inf, perplexity_ratio=math.inf)
    broken = fidelity("transformers", drift=drift, nonfinite=7, beyond="some hold NaN")
    lines = card_text(evidence(plain=broken)).splitlines()
    rows = [list(map(str.strip, one.split("|"))) for one in lines if one.startswith(("| transf", "| safe_d"))]
    assert [[cells[1], cells[3], cells[-2]] for cells in rows] == [
        ["transformers", "not finite", "**beyond the limit**"],
        ["safe_dtype", "1e-06", "within the limit"],
    ]


def test_other_outputs() -> None:
    """What lies beside the main output is named with its figure."""
    boxes = replace(fidelity("transformers").drift, kind="values", rel_rms=0.015)
    drift = replace(fidelity("transformers").drift, heads=(("pred_boxes", boxes),))
    text = card_text(evidence(plain=fidelity("transformers", drift=drift)))
    assert "loaded with transformers: `pred_boxes` (relative RMS\n0.015)." in text
    assert text.count("Beside the main output") == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        pytest.param({"needs": "safe_dtype"}, "**This variant needs safe_dtype.**", id="needs"),
        pytest.param({"islands": ("model.layers.1.mlp",)}, "casts them to float16 on loading", id="islands"),
        pytest.param({"repo": "org/model-fp16"}, "hf cache verify org/model-fp16 --revision <commit>", id="repo"),
        pytest.param(
            {"rescale": {"shifts": [{"gauge": "residual", "bits": 8}], "folded": True,
                         "config": {"rms_norm_eps": 1e-11}, "untied": True}},
            "`rms_norm_eps` is 1e-11; the output head has a weight of its own", id="folded",
        ),
    ],
)  # fmt: skip
def test_says_it_where_it_holds(changes: dict[str, object], said: str) -> None:
    """What is special about a variant is said, and only then."""
    assert said in card_text(evidence(**changes))
    assert said not in card_text(evidence())


def test_forms() -> None:
    """What `optimize` verified is a table, with the chosen form in bold, and the others counted."""
    tried = (TriedForm("eager", "float16", 0.0, 1.0), TriedForm("onnx", "float16", 2e-4, 2.5, chosen=True))
    card = card_text(evidence(forms=Forms(tried, 3, "A processor")))
    assert "| **onnx** | float16 | 0.0002 | 2.5 |" in card
    assert "other attempts failed, or were not needed" in card
    assert "## Forms" not in card_text(evidence())


def test_needs_comes_first() -> None:
    """What a variant needs stands before everything else, and no snippet of plain transformers is shown."""
    card = card_text(evidence(needs="safe_dtype"))
    assert card.index("needs safe_dtype") < card.index("# org/model")
    assert "from transformers import" not in card


def test_nothing_is_left_blank(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that a template names and the evidence has not is an error, never an empty place."""
    lacking = evidence().to_dict()
    del lacking["measured_on"]["positions"]
    monkeypatch.setattr(Evidence, "to_dict", lambda _: lacking)
    with pytest.raises(jinja2.UndefinedError, match="positions"):
        card_text(evidence())


THEIRS = """---
# kept: a comment
language: [en, de]  # in flow style
license: apache-2.0
tags:
  - chat
  - fp16
# of the next one
datasets:
- org/data
---

# Mine

Text of mine.
"""


def test_merged_with_theirs() -> None:
    """Text, order, comments and keys of others stay; ours come in, and a second time changes nothing."""
    merged = card_text(evidence(), THEIRS)
    top, _, body = merged.removeprefix("---\n").partition("\n---\n")
    assert top.splitlines()[:9] == [
        "# kept: a comment", "language: [en, de]  # in flow style", "license: mit", "tags:", "  - chat", "  - fp16",
        "  - safe-dtype", "# of the next one", "datasets:",
    ]  # fmt: skip
    assert body.startswith("\n# Mine\n\nText of mine.\n\n" + BEGIN)
    assert ModelCard(merged).data.base_model == "org/model"
    assert card_text(evidence(), merged) == merged


def test_only_the_block_is_replaced() -> None:
    """What stands before and after our block stays, to the byte."""
    before = card_text(evidence(), THEIRS) + "\nAnd more of mine.\n"
    after = card_text(evidence(repo="org/model-fp16"), before)
    for part in (0, 1):
        assert before.split(BEGIN if part == 0 else END)[part] == after.split(BEGIN if part == 0 else END)[part]
    assert "org/model-fp16" in str(block_of(after))


@pytest.mark.parametrize(
    ("existing", "ours_before"),
    [
        pytest.param("", "\n", id="empty"),
        pytest.param("# Mine\n", "\n# Mine\n\n", id="no-yaml"),
        pytest.param("---\n---\n# Mine\n", "# Mine\n\n", id="empty-yaml"),
    ],
)
def test_without_yaml(existing: str, ours_before: str) -> None:
    """A README without YAML gets ours."""
    merged = card_text(evidence(), existing)
    assert ModelCard(merged).data.license == "mit"
    assert merged.partition("\n---\n")[2].startswith(ours_before + BEGIN)


@pytest.mark.parametrize(
    "existing",
    [
        pytest.param("---\na: [1\n---\n# Mine\n", id="bad-yaml"),
        pytest.param("---\na: 1\n# Mine\n", id="no-end"),
        pytest.param(f"# Mine\n{BEGIN}\n", id="half-a-block"),
        pytest.param(f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n", id="two-blocks"),
    ],
)
def test_what_cannot_be_read_is_not_touched(existing: str) -> None:
    """A README that we would have to guess at is refused."""
    with pytest.raises(NotPublishableError, match="README that is there"):
        card_text(evidence(), existing)


WRITTEN_SO = {
    "byte-order-mark": "\ufeff---\nlanguage: de\nlicense: mit\ntags: [x]\n---\n# Titel\n",
    "leading-blank-line": "\n---\nlanguage: de\ndatasets: [a/b]\n---\n# Titel\n",
    "spaces-after-the-dashes": "--- \nlanguage: de\n--- \n# T\n",
    "windows": "---\r\nlanguage: de\r\nlicense: mit\r\n---\r\n# T\r\nline\r\n",
    "quoted-key": '---\n"license": apache-2.0\nlanguage: fr\n---\n# T\n',
    "in-braces": "---\n{language: fr, license: apache-2.0}\n---\n# T\n",
    "a-rule": "---\n\n# Just a rule above\n\ntext\n",
    "rules-in-the-body": "# T\n\n---\n\ntext\n---\nmore\n",
    "tags-as-text": "---\ntags: bert\n---\nx\n",
    "comments": "---\nlicense: mit  # theirs\n# kept?\ntags:\n# a comment\n- a\nlanguage: hu\n---\nx\n",
    "folded-license": "---\nlicense: >\n  other\n\nlicense_name: foo\nlanguage: hu\n---\nx\n",
    "own-license": "---\nlicense: other\nlicense_name: llama3\nlicense_link: LICENSE\n---\nx\n",
    "texts-like-keys": "---\nextra_gated_prompt: |-\n  Line\n  license: not a key\nlanguage: de\n---\nx\n",
    "end-of-file": "---\nlanguage: fr\n---",
}


@pytest.mark.parametrize("existing", WRITTEN_SO.values(), ids=WRITTEN_SO)
def test_however_theirs_is_written(existing: str) -> None:
    """One block of YAML that the Hub reads, with theirs and ours in it; the body to the byte; the same a second time."""
    card = card_text(evidence(), existing)
    found = ModelCard(card).data.to_dict()
    assert (found["base_model"], found["license"]) == ("org/model", "mit")
    assert {"safe-dtype", "fp16"} <= set(found["tags"])
    for name, value in (ModelCard(existing.lstrip("\ufeff")).data.to_dict()).items():
        if name not in ("license", "license_name", "license_link", "tags"):
            assert found[name] == value
    assert not found.keys() & {"license_name", "license_link"}, "of a license that it has no more"
    assert card_problems(card, evidence()) == []
    assert card_text(evidence(), card) == card
    body = existing.rpartition("---")[2].strip("\r\n ")
    assert card.count(body) >= 1
    assert ("\r\n" in card) is ("\r\n" in existing)
    assert not card.replace("\r\n", "").count("\r")
    assert "\n" not in card.replace("\r\n", "") or "\r\n" not in existing


HOSTILE = "<script>alert(1)</script> [x](javascript:1) ![i](http://e/i.png) `|`` \n\n# Title\n" + END


@pytest.mark.parametrize(
    "changes",
    [
        *(
            pytest.param({"base": replace(BASE, **{name: HOSTILE})}, id=f"base-{name}")
            for name in ("repo", "revision", "license", "license_name", "license_link", "pipeline_tag", "saved")
        ),
        pytest.param({"architecture": HOSTILE}, id="architecture"),
        pytest.param({"dtype": HOSTILE}, id="dtype"),
        pytest.param({"repo": HOSTILE}, id="target"),
        pytest.param({"islands": (HOSTILE,)}, id="islands"),
        pytest.param({"command": f"x\n```\n{HOSTILE}"}, id="command"),
        pytest.param({"device": {"name": HOSTILE, "verdicts": []}}, id="device"),
        pytest.param({"versions": {HOSTILE: HOSTILE}}, id="versions"),
        pytest.param({"tensors": {HOSTILE: DtypeCount(1, 1)}}, id="tensors"),
        pytest.param({"ranges": (LayerRange(HOSTILE, 1.0, 1.0),)}, id="layers"),
        pytest.param({"files": {HOSTILE: StagedFile(1, HOSTILE)}}, id="files"),
        pytest.param({"measured_on": MeasuredOn(HOSTILE, HOSTILE, 4)}, id="text"),
        pytest.param({"needs": "safe_dtype", "plain": fidelity("transformers", beyond=HOSTILE)}, id="verdict"),
        pytest.param({"forms": Forms((TriedForm(HOSTILE, HOSTILE, 0.0, 1.0),), 0, HOSTILE)}, id="forms"),
        pytest.param(
            {"rescale": {"shifts": [{"gauge": HOSTILE, "bits": 8}], "folded": True, "config": {HOSTILE: HOSTILE},
                         "untied": True}}, id="rescale",
        ),
    ],
)  # fmt: skip
def test_names_of_others_are_text(changes: dict[str, object]) -> None:
    """Whatever a base or a foreign form is called, it becomes no HTML, link, picture, heading or marker of ours."""
    card = card_text(evidence(**changes))
    html = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(ModelCard(card).text)
    for tag in ("<script", "<img", 'href="javascript', 'evil.example"', "<h1>Title"):
        assert tag not in html
    assert block_of(card) is not None
    assert card_text(evidence(**changes), card) == card


def test_address_of_a_license() -> None:
    """The address of a license can be followed, and one that is a name is text."""
    address = "https://org.example/LICENSE_2.txt"
    card = card_text(evidence(base=replace(BASE, license="other", license_name="own", license_link=address)))
    assert f"other (own), {address}, as the base model" in card
    card = card_text(evidence(base=replace(BASE, license="other", license_name="own", license_link="LICENSE")))
    assert "other (own), LICENSE, as the base model" in card


def test_repo_is_noted(tmp_path: Path) -> None:
    """Where it is going is kept in safe_dtype.json, so that the card can be rendered again from that."""
    folder = staged(tmp_path / "variant")
    card = write_card(folder, repo="org/model-fp16")
    assert 'from_pretrained("org/model-fp16", revision="<commit>")' in card
    assert card_text(read_evidence(folder)) == card
