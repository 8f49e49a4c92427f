"""Makes sure that a Chromium exists: the system's, else Debian's package, else Playwright's. `make test` runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from tests.browser import playwright_chromium, system_chromium


def main() -> int:
    for make in (lambda: None, debian_package, playwright_download):
        make()
        found = system_chromium() or playwright_chromium()
        if found:
            print(f"browser for the tests: {found}")
            return 0
    print(
        "no Chromium: install one (Debian: apt-get install chromium; elsewhere: playwright install chromium) "
        "and put it on PATH; the browser tests need it",
        file=sys.stderr,
    )
    return 1


def debian_package() -> None:
    """Installs the system's package where we may; what goes wrong is printed by apt itself."""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"],
    ):
        if subprocess.run(command, env=environment, check=False).returncode:
            return


def playwright_download() -> None:
    """Playwright's own browser, for the machine's user."""
    subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=False)


if __name__ == "__main__":
    sys.exit(main())
