"""noria: the whole LLM training chain, from raw text to a deployed model and back."""

import os

# Threads that wait at a barrier spin for some microseconds and then sleep. OpenMP's default of spinning for
# milliseconds made a training step of the nano recipe many times slower as soon as another process ran; never spinning
# (PASSIVE) nearly halves the speed of a quiet machine. Read when torch is first imported; a value set by the user
# stays.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
