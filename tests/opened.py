"""A source over files, read whole, for the tests of what files give."""

from __future__ import annotations

from keyhaul.sources.files.dialect import Dialect
from keyhaul.sources.files.source import FilesSource, Wanted


class opened:  # noqa: N801 - a short word in the tests
    """A source over files and what it gives."""

    def __init__(self, *paths, declared=None, dialect=None, **more):
        paths = tuple(map(str, paths))
        self.source = FilesSource(Wanted(paths=paths, declared=declared or {}, dialect=dialect or Dialect(), **more))

    def read_all(self, chunk_rows=50_000):
        """Rows, and for each rejected record its place, message and raw text."""
        described = self.source.describe()
        reader = self.source.open(1, [column.name for column in described.columns])
        try:
            batches = [reader.read(chunk) for chunk in self.source.plan(chunk_rows).chunks]
        finally:
            self.source.close()
        rows = [row for batch in batches for row in batch.frame.iter_rows()]
        left = [one for batch in batches for one in batch.rejected.select("place", "message", "raw").iter_rows()]
        return rows, left
