from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest

from noria.data.parallel import WorkerError, Workers


@pytest.mark.parametrize("count", [1, 2])
def test_results_come_in_order(count):
    with Workers(count) as workers:
        assert list(workers.map(math.factorial, range(30))) == [math.factorial(n) for n in range(30)]


def test_what_a_function_raises_is_raised_here():
    with pytest.raises(ValueError, match="math domain"), Workers(2) as workers:
        list(workers.map(math.sqrt, [1.0, -1.0, 4.0]))


def test_a_worker_that_dies_is_an_error_not_a_hang():
    with pytest.raises(WorkerError, match="code 3"), Workers(2) as workers:
        list(workers.map(os._exit, [3, 3]))


def test_a_script_without_a_main_guard_works(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import math\nfrom noria.data.parallel import Workers\n"
        "with Workers(2) as workers:\n    print(sum(workers.map(math.isqrt, range(10))))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout == f"{sum(math.isqrt(n) for n in range(10))}\n"
