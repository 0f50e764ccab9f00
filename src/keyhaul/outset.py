"""What a person may not expect of a new run, told when its plan is in the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from keyhaul.parts import AutoChunk
from keyhaul.sizing import auto_chunks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyhaul.prepare import Prepared
    from keyhaul.sizing import Sizing
    from keyhaul.targets.rowhash import Hashing


def surprises(
    prepared: Prepared, sizing: Sizing, hashing: Hashing | None, chunks: int, *, emptied: bool
) -> Iterator[tuple[str, Literal["info", "warning"]]]:
    """Yield messages, each with its level.

    Args:
        prepared: as the run begins.
        sizing: what the memory limit makes of the chunks.
        hashing: of a run with checksums.
        chunks: of the plan.
        emptied: whether the embedded target was emptied first.
    """
    job, target = prepared.job, prepared.target
    if sizing.notice:
        yield sizing.notice, "warning"
    if emptied:
        yield f"emptied {target.label} in the embedded warehouse before loading it again", "info"
    if target.ddl.before:
        yield f"created {target.label}", "info"
    if chunks <= 1:
        return
    if hashing is not None and not hashing.indexed:
        names = ", ".join(column.name for column in hashing.key)
        yield (
            (
                f"no index of {target.label} leads with {names}: the checksum of each of the {chunks} chunks scans it "
                "whole. A primary key or index on the key, or larger chunks, help"
            ),
            "warning",
        )
    if isinstance(job.chunk, AutoChunk):
        yield auto_chunks(job.chunk, sizing.chunk_rows), "info"
    if not prepared.source.indexed():
        yield (
            (
                f"no index of {prepared.source.relation.label} leads with {', '.join(job.key)}: "
                f"each of the {chunks} chunks scans it whole. An index on the key, or larger chunks, help"
            ),
            "warning",
        )
