"""Archived pages by their addresses: what a browser without a network can open."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

from noria.data.readers import Record, read_warc
from noria.types import digest

SITE = "http://site.test"  # .test is reserved: no such host exists (RFC 2606)
MOST_PAGE_BYTES = 16 << 20


@dataclass(frozen=True)
class Archive:
    """`pages`: address -> content. A page's type follows from its address; without an ending it is HTML."""

    pages: Mapping[str, bytes]

    @classmethod
    def from_folder(cls, folder: Path, site: str = SITE) -> Archive:
        """The files under `folder` as a site: `folder`/a/b.html is `site`/a/b.html. Raises ValueError for none."""
        found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        if not found:
            raise ValueError(f"{folder}: no files. Give a folder of saved pages")
        return cls({f"{site}/{name}": path.read_bytes() for name, path in found.items()})

    @classmethod
    def from_warc(cls, path: Path) -> Archive:
        """The HTML pages of a .warc.gz, the first of each address; broken records are left out. Raises ValueError."""
        pages: dict[str, bytes] = {}
        for record in read_warc(path, MOST_PAGE_BYTES):
            if isinstance(record, Record):
                pages.setdefault(record.name, record.raw)
        if not pages:
            raise ValueError(f"{path}: no readable response record. Give a .warc.gz with a gzip member a record")
        return cls(pages)

    @classmethod
    def from_files(cls, files: Mapping[str, str], folder: str, site: str = SITE) -> Archive:
        """The files of a workspace under `folder`, as in `from_folder`; may be empty."""
        start = folder.strip("/") + "/"
        found = {path.removeprefix(start): text for path, text in files.items() if path.startswith(start)}
        return cls({f"{site}/{name}": text.encode("utf-8", "surrogateescape") for name, text in found.items()})

    @cached_property
    def digest(self) -> str:
        return digest(*(part for url in sorted(self.pages) for part in (url, self.pages[url])))

    @cached_property
    def origins(self) -> list[str]:
        """Scheme and host of every page."""
        return sorted({"://".join(urlsplit(url)[:2]) for url in self.pages})

    def find(self, url: str) -> tuple[str, bytes] | None:
        """(content type, content) of the page at `url`: exactly, or without its query, or its index.html."""
        try:
            whole = urldefrag(url).url
        except ValueError:  # no address at all, e.g. http://[
            return None
        bare = whole.partition("?")[0]
        for address in (
            whole,
            bare,
            unquote(bare),
            bare + "index.html" if bare.endswith("/") else bare + "/index.html",
        ):
            if address in self.pages:
                return content_type(address), self.pages[address]
        return None


def content_type(url: str) -> str:
    path = urlsplit(url).path
    kind = mimetypes.guess_type(path)[0] if "." in path.rpartition("/")[2] else None
    # Pages of a manual end in anything (.php, .asp, a version number): what is no known type is a page.
    kind = kind or "text/html"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind
