"""The report of a run: `data` collects every number, `write` shows them as one HTML file that works offline."""

from noria.studio.report.collect import data
from noria.studio.report.page import write

__all__ = ["data", "write"]
