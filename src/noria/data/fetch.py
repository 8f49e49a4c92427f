"""Packages from the package index, pinned by hash, as files: never installed, never built.

pip itself is the client, so its configuration (index, mirrors, proxies, certificates) is honoured. `pip download` would
run a source package's build to read its metadata; only pip's finder and session are used here.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

CHUNK = 1 << 16


class Package(BaseModel):
    """One file of one release on the package index, pinned by its hash."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="project name on the package index")
    version: str = Field(description="release, e.g. 2.1.9")
    filename: str = Field(description="the file of that release: a .tar.gz, .zip or .whl")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="hash that the file must have")


class FetchError(RuntimeError):
    """A package could not be had; the message says which one and what to do."""


def cache_folder() -> Path:
    """Where downloads are kept between runs: $XDG_CACHE_HOME/noria/packages, by default under ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "noria" / "packages"


def fetch(package: Package, cache: Path, report: Callable[[int], None] = lambda size: None) -> Path:
    """The verified file of `package`, from `cache` or else downloaded into it. Raises FetchError.

    `report` is called with the bytes of each piece as it arrives.
    """
    target = cache / package.sha256[:16] / package.filename
    if target.is_file():
        if file_sha256(target) == package.sha256:
            return target
        target.unlink()  # damaged in the cache: get it again
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        hasher = hashlib.sha256()
        with part.open("wb") as file:
            for piece in _download(package):
                file.write(piece)
                hasher.update(piece)
                report(len(piece))
        if hasher.hexdigest() != package.sha256:
            raise FetchError(
                f"{package.filename}: sha256 is {hasher.hexdigest()}, the recipe pins {package.sha256}. "
                "The index served another file; nothing of it was used."
            )
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return target


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(package: Package) -> Iterator[bytes]:
    what = f"{package.name} {package.version} ({package.filename})"
    try:
        with _pip(package) as (session, finder):
            url = _url(finder, package)
            if url is None:
                raise FetchError(
                    f"{what}: not found on the package index that pip is configured for (`pip config list`). "
                    f"If this machine is offline, put the file in {cache_folder() / package.sha256[:16]}."
                )
            response = session.get(url, headers={"Accept-Encoding": "identity"}, stream=True)
            response.raise_for_status()
            yield from response.iter_content(CHUNK)
    except ImportError as error:
        raise FetchError(
            f"{what}: downloads go through pip, which this Python lacks ({error}): python -m ensurepip"
        ) from error
    except (OSError, AttributeError, TypeError) as error:  # requests' errors are OSErrors; the others: another pip
        raise FetchError(
            f"{what}: pip could not download it: {type(error).__name__}: {error}. "
            f"Check the network, or put the file in {cache_folder() / package.sha256[:16]}."
        ) from error


@contextmanager
def _pip(package: Package) -> Iterator[tuple[Any, Any]]:
    """pip's session and finder, as `pip download --no-deps` would set them up."""
    # setuptools replaces the standard library's distutils, and no longer can once pip has loaded that: torch.compile,
    # which imports setuptools, would then fail later in this process.
    with suppress(ImportError):
        import setuptools  # noqa: F401
    from pip._internal.commands import create_command

    logging.getLogger("pip").setLevel(logging.ERROR)
    only = "--only-binary" if package.filename.endswith(".whl") else "--no-binary"
    command: Any = create_command("download")
    options, _ = command.parse_args(["--no-deps", only, ":all:"])
    with command.main_context():
        session = command.get_default_session(options)
        yield session, command._build_package_finder(options, session, ignore_requires_python=True)


def _url(finder: Any, package: Package) -> str | None:
    for candidate in finder.find_all_candidates(package.name):
        if candidate.link.filename == package.filename and str(candidate.version) == package.version:
            return candidate.link.url_without_fragment
    return None
