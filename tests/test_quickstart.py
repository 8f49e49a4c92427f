"""docs/quickstart.md is run as it stands, one block after the other, in a store of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_quickstart_page_runs_as_written(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "quickstart.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    script = tmp_path / "quickstart.py"
    script.write_text("\n".join(blocks).replace('"recipes/', f'"{ROOT}/recipes/'))
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "NORIA_STORE": str(tmp_path / "store")},
    )
    assert done.returncode == 0, done.stderr
    assert "decision" in done.stdout
