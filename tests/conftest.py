from __future__ import annotations

import os
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import soak
import stores
import support


def pytest_collection_modifyitems(config, items):
    """Leave out what is for a thorough run, and is not asked for by its name.

    ``@pytest.mark.thin(3)`` stands at a test of many cases, of which by default each third one runs; ``thorough`` at what
    waits or kills for long and wants a machine that does nothing else. ``KEYHAUL_THOROUGH=1`` runs all.
    """
    if os.environ.get("KEYHAUL_THOROUGH") == "1" or config.option.keyword or any("::" in arg for arg in config.args):
        return
    asked = {Path(arg).name for arg in config.args}
    seen, kept, left = Counter(), [], []
    for item in items:
        test = item.nodeid.partition("[")[0]
        thin = item.get_closest_marker("thin")
        apart = item.get_closest_marker("thorough") is not None and item.path.name not in asked
        (left if apart or seen[test] % (thin.args[0] if thin else 1) else kept).append(item)
        seen[test] += 1
    config.hook.pytest_deselected(items=left)
    items[:] = kept


def pytest_runtest_logreport(report):
    """Count the tests of servers, each of which is one fault."""
    if report.when == "call" and "test_servers.py" in report.nodeid and not report.skipped:
        name = report.nodeid.partition("::")[2].partition("[")[0]
        soak.note("server broken", "all of the matrix", name, wrong=report.failed)


@pytest.hookimpl(hookwrapper=True)
def pytest_terminal_summary(terminalreporter):
    """Name what failed once more, in the last lines of a long output; print what a soak has tried.

    Without KEYHAUL_SOAK_TABLE the same tests are ordinary ones.
    """
    yield
    for report in [*terminalreporter.getreports("failed"), *terminalreporter.getreports("error")]:
        terminalreporter.write_line(f"{report.outcome} ({report.when}): {report.nodeid}", red=True)
    if os.environ.get("KEYHAUL_SOAK_TABLE") and soak.tried:
        terminalreporter.section("soak")
        for line in soak.table():
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def server():
    """PostgreSQL 18 from the wheel, without fsync, for this session; KEYHAUL_TEST_BINDIR names another's programs."""
    other = os.environ.get("KEYHAUL_TEST_BINDIR")
    with support.running_server(bindir=Path(other) if other else None) as running:
        yield running


@pytest.fixture(scope="session")
def server16():
    """PostgreSQL 16 from the wheel."""
    with support.running_server(major=16) as running:
        yield running


@pytest.fixture(scope="session")
def server_icu():
    """Debian's PostgreSQL, which has ICU collations, xml and the contrib extensions; the wheel's has none of them."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if not found:
        pytest.skip("no PostgreSQL with ICU: /usr/lib/postgresql is empty (Debian: apt install postgresql)")
    with support.running_server(bindir=found[-1].parent) as running:
        yield running


@pytest.fixture
def database():
    """A factory: ``database(server)`` or ``database(server, "name")`` is the URI of a fresh, empty database."""
    made = []

    def make(on, prefix="test", template=None):
        uri = support.make_database(on, prefix, template)
        made.append((on, uri))
        return uri

    yield make
    for on, uri in made:
        support.drop_database(on, uri)


@pytest.fixture
def databases(server, database):
    """The URIs of a fresh source and a fresh target."""
    return database(server, "source"), database(server, "target")


@pytest.fixture(scope="session")
def etl_home():
    """HOME of every `etl` process of this session; its embedded server must end with its last user."""
    with support.open_folder() as folder:
        yield folder
        support.wait_until(lambda: support.processes_in(folder) == [], "the embedded server of the etl runs to stop")


@pytest.fixture(scope="session")
def etl(etl_home):
    """``etl("plan", "--key", "id", env={…}, timeout_seconds=…)`` runs the CLI as a process, in a clean environment."""
    return partial(support.run_etl, etl_home)


@pytest.fixture(scope="session")
def azurite(tmp_path_factory):
    """Azurite from npm; see `stores`."""
    with stores.running_azurite(tmp_path_factory.mktemp("azurite")) as running:
        yield running


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """A server that speaks S3, with a bucket called bucket; see `stores`."""
    with stores.running_s3(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def web():
    """A web server with no files yet; see `stores.Web`."""
    with stores.running_web() as running:
        yield running
