"""The page that browses traces: a list fed by query, one trace as a graph, and that trace as a file of its own."""

from noria.studio.traces.server import serve, trace_app
from noria.studio.traces.standalone import standalone

__all__ = ["serve", "standalone", "trace_app"]
