"""Moves chunks of a run in another process, which gets nothing but pickled bytes and its variables."""

import multiprocessing
import os
import pickle

from keyhaul.before.joining import join_run, ticket_of
from keyhaul.control import Control
from keyhaul.execution.chunk import ChunkRunner


def serve(connection, environ):
    """Join the run of the ticket that comes first, then move each chunk that comes and send its result."""
    runner = ChunkRunner.alone(join_run(pickle.loads(connection.recv_bytes()), environ), 1, lambda _: None, Control())  # noqa: S301 - the parent's own
    while (chunk := pickle.loads(connection.recv_bytes())) is not None:  # noqa: S301
        connection.send((os.getpid(), runner.run(chunk)))
    runner.close()


class Elsewhere(ChunkRunner):
    """Has each of its chunks moved by a spawned process; `sent` and `pids` are those of all of them."""

    environ: dict[str, str]
    sent: list[bytes]
    pids: set[int]

    def __init__(self, context, number, shared):
        """Spawn the process and send it the ticket."""
        super().__init__(context, number, shared)
        spawn = multiprocessing.get_context("spawn")
        self._ours, theirs = spawn.Pipe()
        self._process = spawn.Process(target=serve, args=(theirs, self.environ), daemon=True)
        self._process.start()
        theirs.close()
        self._send(ticket_of(context))

    def _send(self, what):
        data = pickle.dumps(what)
        self.sent.append(data)
        self._ours.send_bytes(data)

    def once(self, chunk):
        """Have the chunk moved there."""
        self._send(chunk)
        pid, result = self._ours.recv()
        self.pids.add(pid)
        return result

    def close(self):
        """End the process."""
        self._send(None)
        self._process.join(30)
        super().close()
