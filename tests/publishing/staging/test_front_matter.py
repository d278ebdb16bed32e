"""The YAML at the top of a card: what others wrote stays, whatever their YAML looks like."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from safe_dtype.errors import NotPublishableError
from safe_dtype.publishing.staging.front_matter import dumped, merged, parted, read_front_matter

OURS = {"license": "mit", "tags": ["safe-dtype", "fp16"]}


@pytest.mark.parametrize(
    ("card", "values"),
    [
        pytest.param("---\nlicense: mit\n---\n# M\n", {"license": "mit"}, id="a-table"),
        pytest.param("\ufeff---\nlicense: mit\n---\n# M\n", {"license": "mit"}, id="byte-order-mark"),
        pytest.param("\n \n---\nlicense: mit\n---\n# M\n", {"license": "mit"}, id="blank-lines-before"),
        pytest.param("--- \nlicense: mit\n---  \n# M\n", {"license": "mit"}, id="spaces-after-the-dashes"),
        pytest.param("--- # theirs\nlicense: mit\n---\n# M\n", {"license": "mit"}, id="comment-after-the-dashes"),
        pytest.param("---\r\nlicense: mit\r\n---\r\n# M\r\n", {"license": "mit"}, id="windows"),
        pytest.param("---\nlicense: mit\n---", {"license": "mit"}, id="nothing-after-it"),
        pytest.param("---\nlanguage: no\n---\n", {"language": "no"}, id="norwegian"),
        pytest.param("# M\n---\nlicense: mit\n", {}, id="not-at-the-top"),
        pytest.param("---\n- a\n- b\n---\n", {}, id="a-list"),
        pytest.param("---\na: [1\n---\n", {}, id="no-yaml"),
        pytest.param("---\na: 1\na: 2\n---\n", {}, id="a-key-twice"),
        pytest.param("", {}, id="empty"),
    ],
)
def test_reading(card: str, values: dict[str, object]) -> None:
    """A table at the top is read; anything else counts as none."""
    assert read_front_matter(card) == values


@pytest.mark.parametrize(
    ("card", "top", "body"),
    [
        pytest.param("---\na: 1\n---\n# M\n", "a: 1\n", "# M\n", id="both"),
        pytest.param("---\r\na: 1\r\n---\r\n# M\r\n", "a: 1\n", "# M\r\n", id="windows"),
        pytest.param("\ufeff\n---\na: 1\n---\n# M\n", "a: 1\n", "# M\n", id="mark-and-blank-line"),
        pytest.param("--- # theirs\na: 1\n---\n# M\n", "# theirs\na: 1\n", "# M\n", id="comment-after-the-dashes"),
        pytest.param("# M\n", "", "\n# M\n", id="no-yaml"),
        pytest.param("\ufeff# M\n", "", "\n# M\n", id="mark-and-no-yaml"),
        pytest.param("---\n---\n# M\n", "", "# M\n", id="empty-yaml"),
        pytest.param("---\n\n# A rule above\n\nText\n", "", "\n---\n\n# A rule above\n\nText\n", id="a-rule"),
        pytest.param("---\n\nSome prose\n\n---\nMore\n", "", "\n---\n\nSome prose\n\n---\nMore\n", id="two-rules"),
        pytest.param("", "", "", id="nothing"),
    ],
)
def test_parting(card: str, top: str, body: str) -> None:
    """The lines of the YAML, and what comes after it, to the byte."""
    assert parted(card) == (top, body)


@pytest.mark.parametrize(
    "card", ["---\na: 1\n# M\n", "---\na: [1\n---\n", "---\n- a\n---\n", "---\na: 1\na: 2\n---\n"]
)
def test_what_cannot_be_parted(card: str) -> None:
    """YAML without an end, that is no table, or that says two things of one key, is not guessed at."""
    with pytest.raises(NotPublishableError, match="repair it"):
        parted(card)


@pytest.mark.parametrize(
    ("top", "ours", "lines"),
    [
        pytest.param("", {"a": 1}, ["a: 1"], id="new"),
        pytest.param("# theirs\n", {"a": 1}, ["# theirs", "a: 1"], id="comments-alone"),
        pytest.param("a:   1  # theirs\n", {"a": 1}, ["a:   1  # theirs"], id="the-same"),
        pytest.param("a: 1\nb: 2\n", {"a": 3}, ["a: 3", "b: 2"], id="changed-in-place"),
        pytest.param('"a": 1\nb: 2\n', {"a": 3}, ['"a": 3', "b: 2"], id="a-quoted-key"),
        pytest.param("a: 1 # theirs\n", {"a": 3}, ["a: 3 # theirs"], id="a-comment-beside-it"),
        pytest.param("a:\n  - x\n# of b\nb: 2\n", {"a": 3}, ["# of b", "a: 3", "b: 2"], id="a-block"),
        pytest.param("a: >\n  x\n  y\nb: 2\n", {"a": 3}, ["a: 3", "b: 2"], id="a-folded-text"),
        pytest.param("{a: 1, b: 2}\n", {"a": 3, "c": 4}, ["{a: 3, b: 2, c: 4}"], id="in-braces"),
        pytest.param("tags: [x]\n", {"tags": ["x", "z"]}, ["tags: [x, z]"], id="a-list-grows"),
        pytest.param("tags:\n  - x\n", {"tags": ["z"]}, ["tags:", "  - x", "  - z"], id="an-indented-list-grows"),
        pytest.param(
            "tags:\n# one\n- x\n# of b\nb: 2\n", {"tags": ["z"]}, ["tags:", "# one", "- x", "- z", "# of b", "b: 2"],
            id="a-list-with-comments",
        ),
        pytest.param("tags: x\n", {"tags": ["z"]}, ["tags:", "- x", "- z"], id="a-text-becomes-a-list"),
        pytest.param("tags:\n", {"tags": ["z"]}, ["tags:", "- z"], id="nothing-becomes-a-list"),
        pytest.param("tags: [x, z]\n", {"tags": ["z"]}, ["tags: [x, z]"], id="a-list-has-it"),
        pytest.param(
            "x: &a [1, 2]\ntags: *a\n", {"tags": ["z"]}, ["x: [1, 2]", "tags:", "- 1", "- 2", "- z"], id="an-anchor"
        ),
    ],
)  # fmt: skip
def test_merging(top: str, ours: dict[str, object], lines: list[str]) -> None:
    """Our keys come into their places; of lists nothing is taken away; a second time changes nothing."""
    once = merged(top, ours)
    assert once.splitlines() == lines
    assert merged(once, ours) == once


THEIRS = {
    "block-scalars": "text: |\n  license: no key\n  # no comment\n\n  tags\nmore: >-\n  one\n  line\n",
    "nested": "model-index:\n- name: m\n  results:\n  - task: {type: t}\n    metrics:\n      - value: 0.10\n",
    "dates-and-numbers": "date: 2024-01-31\nversion: 1.10\nhex: 0x1F\nno: no\nnone: ~\nbig: 1e3\nzip: 00123\n",
    "quotes": "a: 'it''s'\nb: \"tab\\t\\u00e9\"\n'c d': x\n? long key\n: value\n",
    "other-scripts": "language: [zh, ar]\ntitle: 模型 نموذج 🤗\n",
    "merge-keys": "base: &b {x: 1}\nother:\n  <<: *b\n  y: 2\n",
    "an-alias-of-a-list": "datasets: &d [a/b]\nmore: *d\n",
    "a-long-line": f"description: {'word ' * 300}\n",
    "an-unknown-tag": "a: !theirs {x: 1}\n",
    "four-spaces": "widget:\n    - text: hello\n      example_title: x\nextra:\n    deep:\n        deeper: 1\n",
}


class _Literal(yaml.SafeLoader):
    """Reads every scalar as its text, so that nothing is lost in a conversion."""


_Literal.add_multi_constructor("!", lambda loader, suffix, node: (suffix, loader.construct_mapping(node)))
_Literal.yaml_implicit_resolvers = {
    first: kept
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if (kept := [one for one in resolvers if one[0] == "tag:yaml.org,2002:merge"])
}


def literal(top: str) -> dict[str, Any]:
    """Return YAML as another library reads it, scalars as they are written."""
    values: dict[str, Any] = yaml.load(top, _Literal)
    return values


@pytest.mark.parametrize("top", THEIRS.values(), ids=THEIRS)
def test_theirs_stay(top: str) -> None:
    """What others wrote is the same to another library, scalar by scalar; a second time changes nothing."""
    once = merged(top, OURS)
    after = literal(once)
    assert {name: after.pop(name) for name in OURS} == OURS
    before = literal(top)
    assert {**after, "none": ""} == {**before, "none": ""}  # "~" and nothing are one
    assert merged(once, OURS) == once


@pytest.mark.parametrize(
    ("top", "ours", "values"),
    [
        pytest.param(
            "license: other\nlicense_name: llama3\nlicense_link: LICENSE\n", {"license": "mit"}, {"license": "mit"},
            id="another-license",
        ),
        pytest.param(
            "license: other\nlicense_name: llama3\nlicense_link: LICENSE\n",
            {"license": "other", "license_name": "own"},
            {"license": "other", "license_name": "own", "license_link": "LICENSE"}, id="another-name",
        ),
        pytest.param(
            "license: other\nlicense_link: LICENSE\n", {"license": "other"},
            {"license": "other", "license_link": "LICENSE"}, id="the-same-license",
        ),
    ],
)  # fmt: skip
def test_what_belongs_to_a_license(top: str, ours: dict[str, str], values: dict[str, str]) -> None:
    """Name and link of a license go where another license takes its place, and stay where it does not."""
    assert literal(merged(top, ours)) == values


def test_comments_are_never_lost() -> None:
    """A comment that hangs at something that goes is kept at the top."""
    top = "license: other\nlicense_name: own # of the name\n# of the data\ndatasets: [a/b]\n"
    new = merged(top, {"license": "mit"})
    assert "# of the name" in new
    assert "# of the data" in new
    assert literal(new) == {"license": "mit", "datasets": ["a/b"]}


def test_not_a_number() -> None:
    """A metric that is NaN equals nothing, itself included, and is kept like any other."""
    top = "score: .nan\nbest: .inf\n"
    assert merged(top, OURS).startswith(top)


def test_tags_that_are_no_list() -> None:
    """Where a list of ours would take the place of something else, nothing is changed."""
    with pytest.raises(NotPublishableError, match="tags is no list"):
        merged("tags: {a: b}\n", OURS)


def test_anchors_without_end() -> None:
    """Aliases that nest, or name themselves, are compared once and not unrolled."""
    nested = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    assert merged(nested + "loop: &l [*l]\n", OURS).startswith("a0: &a0 [x]\n")


def test_order() -> None:
    """Values are written in the order that they are in."""
    assert dumped({"b": 1, "a": ["ü"]}) == 'b: 1\na:\n- "ü"\n'


@pytest.mark.parametrize(
    "value",
    ["mit\nfoo: bar", "x\n---\n# evil", "no", "1.0", "0o17", "2024-01-31", "a: b", "# x", "", " ", "\x85\u2028"],
)
def test_any_text(value: str) -> None:
    """A text of somebody else is one value to every version of YAML, and ends no YAML block."""
    top = dumped({"license": value, "tags": [value]})
    assert yaml.safe_load(top) == {"license": value, "tags": [value]}
    card = f"---\n{top}---\nbody\n"
    assert read_front_matter(card) == {"license": value, "tags": [value]}
    block = REGEX_YAML_BLOCK.search(card)
    assert block is not None
    assert card[block.end() :] == "body\n"
