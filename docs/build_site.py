"""Build the site of the documents: `python docs/build_site.py` writes build/site from README, docs/ and what they link to.

A page is written for GitHub: its links lead to files of the project, cog's code stands beside what it wrote. Here each
page is copied to build/pages with its links pointed at copies, and code that a page links to becomes a page of its own.
Then zensical builds them as mkdocs.yml says. Nothing is fetched, neither now nor by who reads the site.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "mkdocs.yml"
PAGES = ROOT / "build" / "pages"  # `docs_dir` of mkdocs.yml
SITE = ROOT / "build" / "site"  # its `site_dir`

_NAMES = {"README.md": "index.md", "docs/index.md": "documents.md", "CONTRIBUTING.md": "contributing.md"}
_CODE = {".py": "python", ".sh": "bash", ".yaml": "yaml", ".toml": "toml", ".j2": "jinja"}
_FENCED = re.compile(r"^ *(```+|~~~+).*?^ *\1 *$", re.MULTILINE | re.DOTALL)
_COG = re.compile(r"^<!-- \[\[\[(?:cog.*?\]\]\]|end\]\]\]) -->\n", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:)([^)\s#]+)(#[^)\s]*)?(?=\))")


class BrokenLinkError(Exception):
    """A page links to what is no file of the project."""


def place_of(file: str) -> PurePosixPath:
    """Return where a file of the project, by its path in it, stands among the pages."""
    path = PurePosixPath(file)
    if file in _NAMES or path.suffix == ".md":
        return PurePosixPath(_NAMES.get(file, file.removeprefix("docs/")))
    return PurePosixPath("files", f"{file}.md" if path.suffix in _CODE else file)


def page_of(file: str, text: str) -> tuple[str, set[str]]:
    """Return a page as the site has it, and the files of the project that it links to.

    Raises:
        BrokenLinkError: If one of them is not there, or is a folder.
    """
    linked = set()

    def point(link: re.Match[str]) -> str:
        target = os.path.normpath(PurePosixPath(file).parent / unquote(link[1]))
        if target.startswith("..") or not (ROOT / target).is_file():
            raise BrokenLinkError(f"{file}: {link[1]} is no file of the project")
        linked.add(target)
        return os.path.relpath(place_of(target), place_of(file).parent) + (link[2] or "")

    written = _COG.sub("", text)
    fenced = [match.span() for match in _FENCED.finditer(written)]

    def point_in_prose(link: re.Match[str]) -> str:
        return link[0] if any(start <= link.start() < end for start, end in fenced) else point(link)

    return _LINK.sub(point_in_prose, written), linked


def code_page(file: str, text: str) -> str:
    """Return a page that shows a file of code."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"# {file.rpartition('/')[2]}\n\n`{file}`\n\n{fence}{_CODE[PurePosixPath(file).suffix]}\n{text}{fence}\n"


def pages(starts: Mapping[str, str]) -> tuple[dict[str, str], set[str]]:
    """Return every page by its place, from `starts` (file and text) on, and the files that are copied as they are."""
    made: dict[str, str] = {}
    copied: set[str] = set()
    waiting = dict(starts)
    while waiting:
        file, text = waiting.popitem()
        if PurePosixPath(file).suffix == ".md":
            made[str(place_of(file))], linked = page_of(file, text)
        else:
            made[str(place_of(file))], linked = code_page(file, text), set()
        for target in linked:
            if place_of(target).suffix != ".md":
                copied.add(target)
            elif str(place_of(target)) not in made:
                waiting[target] = (ROOT / target).read_text(encoding="utf-8")
    return made, copied


def stage(folder: Path) -> None:
    """Write all pages, and what they show or link to, into the empty `folder`."""
    files = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    made, copied = pages({str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in files})
    for place, text in made.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(text, encoding="utf-8")
    for file in copied:
        (folder / place_of(file)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, folder / place_of(file))
    shutil.copyfile(ROOT / "docs" / "site.css", folder / "site.css")


def build() -> int:
    """Build the site, strictly; return the status of what builds it."""
    for folder in (PAGES, SITE):
        shutil.rmtree(folder, ignore_errors=True)
    stage(PAGES)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "--config-file", str(CONFIG)]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(build())
