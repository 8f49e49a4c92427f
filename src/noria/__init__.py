"""noria: the whole LLM training chain, from raw text to a deployed model and back."""

import os

# Threads that wait at a barrier must sleep, not spin: with any other process on the cores, spinning made a training step
# of the nano recipe 12x slower. Read by OpenMP when torch is first imported; a value set by the user stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
