from __future__ import annotations

import hashlib
import subprocess
import sys
from contextlib import contextmanager

import pytest

from noria.data import fetch as fetching
from noria.data.fetch import FetchError, Package, cache_folder, fetch

RAW = b"the file" * 1000
PACKAGE = Package(name="thing", version="1.0", filename="thing-1.0.tar.gz", sha256=hashlib.sha256(RAW).hexdigest())


class Session:
    def __init__(self, raw: bytes) -> None:
        self.raw, self.calls = raw, 0

    def get(self, url, headers, stream):
        self.calls += 1
        return self

    def raise_for_status(self) -> None:
        pass

    def iter_content(self, size):
        return iter([self.raw[:size], self.raw[size:]])


class Link:
    filename, url_without_fragment = PACKAGE.filename, "file:///thing"


class Candidate:
    version, link = "1.0", Link


class Finder:
    def __init__(self, found) -> None:
        self.found = found

    def find_all_candidates(self, name):
        return self.found


@pytest.fixture
def index(monkeypatch):
    def serve(raw=RAW, found=(Candidate,), error=None):
        session = Session(raw)

        @contextmanager
        def pip(package):
            if error:
                raise error
            yield session, Finder(found)

        monkeypatch.setattr(fetching, "_pip", pip)
        return session

    return serve


def test_a_second_fetch_downloads_nothing(index, tmp_path):
    session, sizes = index(), []
    path = fetch(PACKAGE, tmp_path, sizes.append)
    assert path.read_bytes() == RAW and sum(sizes) == len(RAW)
    assert fetch(PACKAGE, tmp_path) == path
    assert session.calls == 1


def test_a_damaged_cached_file_is_fetched_again(index, tmp_path):
    session = index()
    fetch(PACKAGE, tmp_path).write_bytes(b"damaged")
    assert fetch(PACKAGE, tmp_path).read_bytes() == RAW
    assert session.calls == 2


def test_another_file_than_the_pinned_one_is_refused_and_leaves_nothing(index, tmp_path):
    index(raw=b"other")
    with pytest.raises(FetchError, match="sha256"):
        fetch(PACKAGE, tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("error", [ConnectionError("no network"), ImportError("no pip"), AttributeError("other pip")])
def test_trouble_says_which_package_and_what_to_do(index, tmp_path, error):
    index(error=error)
    with pytest.raises(FetchError, match=r"thing 1\.0 \(thing-1\.0\.tar\.gz\).*pip"):
        fetch(PACKAGE, tmp_path)


def test_an_index_without_the_file_is_reported(index, tmp_path):
    index(found=())
    with pytest.raises(FetchError, match="not found on the package index"):
        fetch(PACKAGE, tmp_path)


def test_cache_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "noria" / "packages"


def test_pip_finds_a_local_package_without_building_it(monkeypatch, tmp_path):
    """The real client against a folder of files: a source package whose build would fail is had all the same."""
    wheels = tmp_path / "links"
    wheels.mkdir()
    (wheels / PACKAGE.filename).write_bytes(RAW)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert fetch(PACKAGE, tmp_path / "cache").read_bytes() == RAW


def test_a_download_leaves_the_process_able_to_compile():
    """pip and setuptools quarrel over distutils; torch.compile needs the latter after the former was loaded."""
    code = "from noria.data.fetch import Package, _pip; package = Package(name='x', version='1', filename='x.whl', "
    code += "sha256='0' * 64)\nwith _pip(package): pass\nimport distutils.core, setuptools.command.build_ext"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
