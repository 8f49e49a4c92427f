"""Documents in bulk: the columns of an Arrow table whose row is a `types.Document`."""

from __future__ import annotations

import pyarrow as pa

DOCUMENT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("content_hash", pa.string()),
        ("text", pa.large_string()),
        ("source", pa.string()),
        ("licence", pa.string()),
        ("language", pa.string()),
        ("origin", pa.struct([("file", pa.string()), ("offset", pa.int64()), ("length", pa.int64())])),
        ("signals", pa.map_(pa.string(), pa.float64())),
    ]
)
