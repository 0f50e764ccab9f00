from __future__ import annotations

import pytest
from process import Process


@pytest.fixture
def start_etl(etl_home, tmp_path):
    """``start_etl("chunked", …, env={…})`` starts the CLI in `tmp_path` and returns the running `Process`."""
    started = []

    def start(*args, env=None):
        process = Process(etl_home, *args, cwd=tmp_path, env=env)
        started.append(process)
        return process

    yield start
    for process in started:
        process.close()
