"""What mkdocs is told besides mkdocs.yml: the pages that live at the repository's root, and links that leave docs/."""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
#: Page of the site -> file of the repository.
PAGES = {
    "index.md": "README.md", "design.md": "DESIGN.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md",
}  # fmt: skip
_PICTURES = (".png", ".jpg", ".gif", ".webp")
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_FENCED = re.compile(r"(^ *```.*?^ *```)", re.M | re.S)

log = logging.getLogger("mkdocs.plugins.vsf")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of the root, and every picture outside of docs/ that a page shows."""
    for page, source in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for path in [*(ROOT / "docs").rglob("*.md"), *(ROOT / source for source in PAGES.values())]:
        for _, _, target in _LINK.findall(path.read_text("utf-8")):
            where = (path.parent / target).resolve()
            if where.suffix in _PICTURES and where.is_file() and not where.is_relative_to(ROOT / "docs"):
                name = where.relative_to(ROOT).as_posix()
                if files.get_file_from_path(name) is None:
                    files.append(File.generated(config, name, abs_src_path=str(where)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as the site has them; see `relinked`."""
    uri = page.file.src_uri
    text, broken = relinked(markdown, uri, PAGES.get(uri, f"docs/{uri}"))
    for target in broken:
        log.warning(f"{PAGES.get(uri, f'docs/{uri}')} links to {target}, which is not there")  # an error with --strict
    return text


def relinked(markdown: str, page: str, source: str) -> tuple[str, list[str]]:
    """The text with each relative link turned from the repository's place to the site's, and the targets that are nowhere.

    `page` is the page's place on the site, `source` the file's in the repository. What the site does not have, such as
    source code, becomes plain words.
    """
    broken: list[str] = []
    pages = {file: name for name, file in PAGES.items()}

    def turned(match: re.Match[str]) -> str:
        mark, words, target = match.groups()
        path, hash, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or not path:
            return match[0]
        place = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if not (ROOT / place).exists():
            broken.append(target)
            return match[0]
        if place in pages:
            place = pages[place]
        elif place.startswith("docs/"):
            place = place.removeprefix("docs/")
        elif not place.endswith(_PICTURES):
            return words
        return f"{mark}[{words}]({posixpath.relpath(place, posixpath.dirname(page) or '.')}{hash}{anchor})"

    parts = _FENCED.split(markdown)
    return "".join(part if i % 2 else _LINK.sub(turned, part) for i, part in enumerate(parts)), broken
