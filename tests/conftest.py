"""Settings of the whole suite."""

from __future__ import annotations

import os

# Tests use tensors of a few kilobytes: a second thread wins nothing there, and on a busy machine the two wait for each
# other for seconds. Steps of a run set their own number of threads, whatever this says.
os.environ.setdefault("OMP_NUM_THREADS", "1")
