from __future__ import annotations

import os
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import soak
import support

THINNED = {
    "test_a_chunk_killed_at_its_commit_is_in_all_tables_or_in_none": 2,
    "test_a_command_that_only_reads_says_in_one_line_that_it_cannot_write": 2,
    "test_a_fault_at_every_passage_of_a_point_leaves_a_run_that_the_same_command_completes": 4,
    "test_a_key_of_any_type_is_found_again_by_its_text": 3,
    "test_a_link_that_breaks_costs_at_most_its_timeout_and_no_row": 2,
    "test_a_live_run_is_followed_to_its_end_and_gives_its_exit_code": 2,
    "test_a_lost_commit_or_answer_to_it_neither_loses_nor_repeats_rows": 3,
    "test_a_mistake_gets_one_message_and_changes_nothing": 3,
    "test_a_password_that_is_not_encoded_is_told_how_to_be": 2,
    "test_a_run_that_was_done_is_done_though_its_report_cannot_be_written": 3,
    "test_a_run_whose_stream_nobody_reads_is_stopped_by_a_signal": 3,
    "test_a_computed_value_is_stored_as_the_server_would_assign_it": 2,
    "test_a_second_interrupt_cancels_what_is_being_loaded": 2,
    "test_a_second_interrupt_cancels_what_is_being_read": 2,
    "test_a_server_that_is_restarted_costs_no_row": 2,
    "test_a_server_that_works_for_longer_than_the_networks_timeout_is_left_alone": 2,
    "test_a_signal_ends_it_soon_and_leaves_no_session": 3,
    "test_an_outage_whose_old_sessions_stay_in_the_server_is_over_when_the_network_is_back": 2,
    "test_each_value_arrives_unchanged_or_is_quarantined": 2,
    "test_killed_at_any_moment_the_table_is_old_or_new_and_the_same_command_ends_it": 3,
    "test_killed_inside_a_statement_of_the_end": 2,
    "test_killed_runs_that_are_resumed_give_the_same_table_as_one_run": 2,
    "test_lost_connections_of_workers_are_retried_and_nothing_is_loaded_twice": 2,
    "test_many_guilty_records_are_found_and_only_they": 2,
    "test_no_secret_is_told_whatever_fails": 4,
    "test_orphans_whose_parents_came_later_load_and_the_rest_stays": 3,
    "test_runs_killed_in_either_phase_load_what_one_query_says": 2,
    "test_the_memory_limit_holds_with_rows_of_one_megabyte": 4,
    "test_the_oracle_sees_a_mistake_in_the_tool": 3,
    "test_what_the_server_does_not_ask_costs_no_row": 2,
    "test_without_stderr_a_run_loads_all_the_same": 3,
}
"""Tests with long lists of processes: by default each n-th of a list. All of them with ``KEYHAUL_THOROUGH=1``, and where
a test is asked for by its name."""


APART = {"test_outages.py", "test_halting.py", "test_kill.py"}
"""Files that wait or kill for long and want a machine that does nothing else: for thorough runs, or asked for by its name."""


def pytest_collection_modifyitems(config, items):
    """Leave out what is for a thorough run."""
    if os.environ.get("KEYHAUL_THOROUGH") == "1" or config.option.keyword or any("::" in arg for arg in config.args):
        return
    asked = {Path(arg).name for arg in config.args}
    seen, kept, left = Counter(), [], []
    for item in items:
        name = getattr(item, "originalname", item.name)
        apart = item.path.name in APART and item.path.name not in asked
        (left if apart or seen[name] % THINNED.get(name, 1) else kept).append(item)
        seen[name] += 1
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
    """PostgreSQL 18 from the wheel, without fsync, for this session."""
    with support.running_server() as running:
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
