"""The abuse suite: attempts to get out, to spy, to exhaust, to forge, by class. None may succeed.

`run` makes them all; `Range` makes one after the other. `noria sandbox abuse` is the command for people.
"""

from noria.sandbox.abuse.attempt import MODES, Attempt, Mode, source
from noria.sandbox.abuse.files import FILES
from noria.sandbox.abuse.forging import FORGING
from noria.sandbox.abuse.kernel import KERNEL
from noria.sandbox.abuse.links import LINKS
from noria.sandbox.abuse.network import NETWORK
from noria.sandbox.abuse.processes import PROCESSES
from noria.sandbox.abuse.range import Range, Result, Verdict
from noria.sandbox.abuse.resources import RESOURCES
from noria.sandbox.abuse.timing import TIMING

CLASSES: dict[str, tuple[Attempt, ...]] = {
    "file system": FILES,
    "network": NETWORK,
    "processes": PROCESSES,
    "kernel surface": KERNEL,
    "resources": RESOURCES,
    "symlinks and readers outside": LINKS,
    "timing": TIMING,
    "verdict forging": FORGING,
}

__all__ = ["CLASSES", "MODES", "Attempt", "Mode", "Range", "Result", "Verdict", "source"]
