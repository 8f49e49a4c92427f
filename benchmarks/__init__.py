"""Benchmarks: noria side by side with peers and with its own bounds. `python -m benchmarks.NAME [--json] [--quick]`."""
