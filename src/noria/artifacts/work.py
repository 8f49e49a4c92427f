"""Making one artifact: a work folder that survives kill -9, and its publication by one rename.

    work/<key>/<code digest>/progress/             what the step keeps to resume from; outlives kills and Ctrl-C
    work/<key>/<code digest>/artifact/content/     what the artifact will be; emptied when the step starts again
    work/<key>/<code digest>/artifact/observed/
    work/<key>/<code digest>/artifact/manifest.json   written when all else is on disk: from here on it is whole

The code digest is in the path because half-done work may only be continued by equal code; what other code left is
neither used nor harmed, and is there again when that code comes back. All calls need the lock of the key.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from noria.artifacts.errors import explained
from noria.artifacts.files import remove_tree, sync, sync_tree
from noria.artifacts.manifest import MANIFEST, Manifest, check_files, describe_files, read_manifest, write_manifest


@dataclass(frozen=True)
class Work:
    """The work folder of one key and code. `artifacts` and `trash` are folders of the same store."""

    key: str
    folder: Path
    artifacts: Path
    trash: Path

    @property
    def progress(self) -> Path:
        return self.folder / "progress"

    @property
    def staging(self) -> Path:
        return self.folder / "artifact"

    def has_progress(self) -> bool:
        return self.progress.is_dir() and any(self.progress.iterdir())

    def left_by_other_code(self) -> bool:
        """True when another version of the code left progress here that this one may not continue."""
        others = self.folder.parent.glob("*/progress/*")
        return any(path.parent.parent != self.folder for path in others)

    def is_whole(self) -> bool:
        """True when a kill, or a download, left it between manifest and rename: only `adopt` is missing."""
        return (self.staging / MANIFEST).exists()

    def adopt(self) -> None:
        """Publish what is whole, after hashing every file. Raises Damaged if one is not what its manifest says."""
        check_files(self.staging, read_manifest(self.staging, self.key), full=True)
        with explained(self.folder):
            sync_tree(self.staging)
        self._rename()

    def begin(self) -> None:
        """Empty content/ and observed/, keep progress/."""
        with explained(self.folder):
            if self.staging.exists():
                shutil.rmtree(self.staging)
            for folder in (self.staging / "content", self.staging / "observed", self.progress):
                folder.mkdir(parents=True, exist_ok=True)

    def publish(self, manifest: Manifest) -> None:
        """Put `manifest`, completed with the files of content/, and the artifact where readers find it, at once."""
        with explained(self.folder):
            sync_tree(self.staging)
            write_manifest(self.staging, replace(manifest, files=describe_files(self.staging / "content")))
        self._rename()

    def discard(self) -> None:
        """Remove the whole work folder of the key: it is published."""
        with explained(self.folder):
            remove_tree(self.folder.parent, self.trash)

    def _rename(self) -> None:
        with explained(self.artifacts):
            self.artifacts.mkdir(parents=True, exist_ok=True)
            self.staging.rename(self.artifacts / self.key)
            sync(self.artifacts)
        self.discard()
