"""Traces kept: written as rollouts finish, found by query, graded again, replayed, run again, exported."""

from noria.harness.tape import ReplayMismatch
from noria.harness.traces.entry import Damage, Entry, Recorded, TraceFileError
from noria.harness.traces.index import Query
from noria.harness.traces.library import Library, build_index
from noria.harness.traces.lines import load, save
from noria.harness.traces.log import TraceWriter
from noria.harness.traces.replay import Rerun, reexecute, regrade, replay
from noria.harness.traces.steps import StepTraces

__all__ = [
    "Damage",
    "Entry",
    "Library",
    "Query",
    "Recorded",
    "ReplayMismatch",
    "Rerun",
    "StepTraces",
    "TraceFileError",
    "TraceWriter",
    "build_index",
    "load",
    "reexecute",
    "regrade",
    "replay",
    "save",
]
