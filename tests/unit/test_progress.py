from __future__ import annotations

import io
import json
import shlex
import threading
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from keyhaul.cli.retyped import typed_again
from keyhaul.events import (
    ChunkDone,
    ChunkFailed,
    ChunkGathered,
    ChunkHalved,
    ChunkHeld,
    ChunkReleased,
    ChunkRetried,
    ChunkStarted,
    Notice,
    RunFinished,
    RunStarted,
    StepStarted,
    Stopping,
    WorkersAllowed,
    WorkersChosen,
)
from keyhaul.live.progress import JsonProgress, LiveProgress, PlainProgress, frame, make_progress, sentence, status_line
from keyhaul.live.tally import Tally
from keyhaul.model import Counts, FailedChunk, Report, Timings
from keyhaul.printing.reporting import print_report
from keyhaul.text import clock_time, duration, one_line

RUN = "20261122T084736-3f9a"


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def started(*, chunks=4, rows=400, done=0, read=0, workers=2, job="flights"):
    return RunStarted(
        run_id=RUN,
        job=job,
        source="public.flights",
        target="public.flights",
        resumed=done > 0,
        chunks_planned=chunks,
        chunks_done=done,
        estimated_rows=rows,
        done=Counts(read=read, loaded=read),
        workers=workers,
    )


def chunk_done(chunk, worker=1, read=100):
    counts = Counts(read=read, loaded=read)
    return ChunkDone(chunk=chunk, worker=worker, counts=counts, timings=Timings(), attempts=1, bytes_read=0)


def report(**changes):
    values = {
        "run_id": RUN,
        "job": "flights",
        "outcome": "done",
        "resumable": False,
        "resumed": False,
        "chunks_planned": 7,
        "chunks_done": 7,
        "counts": Counts(read=336776, loaded=336700, quarantined=76),
        "sitting": Counts(read=336776),
        "timings": Timings(read_seconds=1.0, load_seconds=3.0),
        "failed": (),
        "seconds": 2.0,
        "workers": 2,
        "quarantined_by_reason": {"known [origin]": 76},
        "target_table": "public.flights",
    }
    return Report(**(values | changes))


def printed(what, **options):
    stream = io.StringIO()
    print_report(what, stream, **options)
    return stream.getvalue()


def drawn(view, width, height=24):
    # On a wider console than the frame is made for, so that nothing but the frame itself keeps to the width.
    stream = io.StringIO()
    Console(file=stream, width=width + 100, height=height).print(frame(view, width, height))
    return stream.getvalue().splitlines()


chunk_numbers = st.integers(1, 6)
worker_numbers = st.integers(1, 3)
row_counts = st.integers(0, 300)
events = st.one_of(
    st.builds(started, chunks=st.integers(0, 6), rows=row_counts, done=st.integers(0, 3), read=row_counts),
    st.builds(ChunkStarted, chunk=chunk_numbers, worker=worker_numbers, estimated_rows=row_counts),
    st.builds(
        StepStarted,
        chunk=chunk_numbers,
        worker=worker_numbers,
        rows=row_counts,
        step=st.sampled_from(["read", "transform", "stage", "load"]),
    ),
    st.builds(chunk_done, chunk_numbers, worker_numbers, row_counts),
    st.builds(
        ChunkRetried,
        chunk=chunk_numbers,
        worker=worker_numbers,
        attempt=st.just(1),
        wait_seconds=st.just(0.5),
        error=st.just("gone"),
    ),
    st.builds(ChunkGathered, chunk=chunk_numbers, worker=worker_numbers, rows=row_counts, attempts=st.just(1)),
    st.builds(ChunkHalved, chunk=chunk_numbers, worker=worker_numbers, cuts=st.just(2), error=st.just("gone")),
    st.builds(ChunkFailed, chunk=chunk_numbers, worker=worker_numbers, attempts=st.just(3), error=st.just("gone")),
    st.builds(ChunkHeld, chunk=chunk_numbers, worker=worker_numbers, limit=st.just("rate_limit")),
    st.builds(ChunkReleased, chunk=chunk_numbers, worker=worker_numbers, seconds=st.just(0.5)),
    st.builds(WorkersAllowed, active=worker_numbers, workers=st.just(3), cpu_percent=st.just(99.0)),
    st.builds(Stopping, reason=st.just("told to")),
)


@given(st.lists(st.tuples(events, st.floats(0, 30)), max_size=40))
def test_the_bar_stays_within_bounds_and_never_goes_back_whatever_the_order_of_events(sequence):
    clock = Clock()
    tally = Tally(clock)
    before = tally.view().fraction
    for event, seconds in sequence:
        tally(event)
        clock.now += seconds
        view = tally.view()
        assert before <= view.fraction < 1
        assert min(view.current, view.mean, view.peak, view.elapsed_seconds, view.eta_seconds or 0) >= 0
        assert all(len(line) <= 60 for line in drawn(view, 60))
        before = view.fraction
    tally(RunFinished(report=report()))
    assert tally.view().fraction == 1


def test_an_empty_run_divides_by_nothing():
    tally = Tally(Clock())
    assert tally.view().phase == "planning"
    assert "planning" in "\n".join(drawn(tally.view(), 80))
    tally(started(chunks=0, rows=0))
    view = tally.view()
    assert (view.fraction, view.current, view.mean, view.eta_seconds) == (0, 0, 0, None)
    drawn(view, 80)


def test_a_chunk_in_flight_moves_the_bar_by_its_finished_steps_and_leaves_the_numbers_alone():
    tally = Tally(Clock())
    tally(started(chunks=4, rows=400))
    tally(ChunkStarted(chunk=1, worker=1, estimated_rows=100))
    seen = []
    for step in ("read", "transform", "stage", "load"):
        tally(StepStarted(chunk=1, worker=1, step=step, rows=0 if step == "read" else 100))
        seen.append(round(tally.view().fraction, 4))
    assert seen == [0, 0.0875, 0.1125, 0.15]
    assert tally.view().counts == Counts()
    tally(chunk_done(1))
    assert tally.view().fraction == 0.25
    assert tally.view().counts == Counts(read=100, loaded=100)


def test_gathered_chunks_move_the_bar_and_only_loaded_ones_count():
    tally = Tally(Clock())
    tally(started(chunks=2, rows=200))
    seen = []
    for chunk in (1, 2):
        tally(ChunkStarted(chunk=chunk, worker=1, estimated_rows=100))
        tally(ChunkGathered(chunk=chunk, worker=1, rows=100, attempts=1))
        seen.append(tally.view().fraction)
        assert tally.view().counts == Counts()
    for chunk in (1, 2):
        tally(ChunkStarted(chunk=chunk, worker=1, estimated_rows=100))
        tally(StepStarted(chunk=chunk, worker=1, step="load", rows=90))
        seen.append(tally.view().fraction)
        tally(chunk_done(chunk))
        seen.append(tally.view().fraction)
    assert seen == pytest.approx([0.3, 0.6, 0.6, 0.8, 0.8, 0.999])
    assert tally.view().counts == Counts(read=200, loaded=200)


def test_what_limits_did_is_shown_while_it_happens_and_after_it():
    clock = Clock()
    tally = Tally(clock)
    tally(started())
    tally(ChunkStarted(chunk=1, worker=1, estimated_rows=100))
    tally(ChunkHeld(chunk=1, worker=1, limit="memory_limit"))
    clock.now = 2.0
    assert (tally.view().limit_seconds, tally.view().workers[0].step) == (2.0, "waits")
    clock.now = 3.0
    tally(ChunkReleased(chunk=1, worker=1, seconds=3.0))
    tally(WorkersAllowed(active=1, workers=2, cpu_percent=97.0))
    clock.now = 9.0
    view = tally.view()
    assert (view.limit_seconds, view.active, view.workers[0].step) == (3.0, 1, "read")
    assert "waited 3.0 s for limits, 1 active worker" in status_line(view)
    assert "waited for limits 3.0 s  active 1 worker" in " ".join(drawn(view, 120))
    tally(WorkersAllowed(active=2, workers=2, cpu_percent=20.0))
    assert tally.view().active is None


def test_what_waits_when_the_run_is_told_to_stop_waits_no_longer():
    clock = Clock()
    tally = Tally(clock)
    tally(started())
    tally(ChunkHeld(chunk=1, worker=1, limit="rate_limit"))
    clock.now = 2.0
    tally(Stopping(reason="told to"))
    clock.now = 60.0
    assert tally.view().limit_seconds == 2.0


def test_the_report_says_what_limits_did():
    told = printed(report(held={"rate_limit": 1.25, "memory_limit": 12.0}, fewest_workers=1, chunks_timed=7))
    assert "limits     waited 12.0 s for memory_limit, 1.2 s for rate_limit" in told
    assert "cpu_limit  1 active worker at the least" in told
    assert "limits" not in printed(report())


def test_an_estimate_that_is_exceeded_is_corrected():
    tally = Tally(Clock())
    tally(started(chunks=4, rows=40))
    for chunk in (1, 2):
        tally(ChunkStarted(chunk=chunk, worker=1, estimated_rows=10))
        tally(chunk_done(chunk, read=1000))
    assert tally.view().total_rows == 2020
    tally(ChunkStarted(chunk=3, worker=1, estimated_rows=20))
    tally(chunk_done(3, read=1000))
    assert tally.view().total_rows == 4000
    tally(chunk_done(4, read=1000))
    assert 0.99 < tally.view().fraction < 1


def test_merged_chunks_count_for_their_cuts_and_a_halved_one_for_nothing():
    tally = Tally(Clock())
    tally(started(chunks=40, rows=400))
    tally(ChunkStarted(chunk=1, worker=1, estimated_rows=200, cuts=20))
    tally(ChunkHalved(chunk=1, worker=1, cuts=20, error="gone"))
    assert tally.view().workers[0].chunk is None
    for chunk in (1, 11, 21, 31):
        assert tally.view().total_rows == 400
        tally(ChunkStarted(chunk=chunk, worker=1, estimated_rows=100, cuts=10))
        tally(chunk_done(chunk, read=100))
    assert tally.view().total_rows == 400
    late = Tally(Clock())
    late(started(chunks=40, rows=400))
    late(ChunkStarted(chunk=1, worker=1, estimated_rows=390, cuts=39))
    late(chunk_done(1, read=3900))  # the last cut is taken to be like the others
    assert late.view().total_rows == 3910


def test_what_becomes_of_chunks_and_workers_is_told_in_a_line():
    halved = ChunkHalved(chunk=3, worker=1, cuts=16, error="a\nb")
    assert sentence(halved) == ("retry", "chunk 3 failed and is halved (16 cuts): a\\nb")
    chosen = WorkersChosen(workers=4, before=2, reason="2 waited 95 % of their time")
    assert sentence(chosen) == ("info", "4 workers, not 2: 2 waited 95 % of their time")
    assert sentence(replace(chosen, workers=2, reason="r")) == ("info", "2 workers, from here on: r")
    assert "  8 workers, 2 at first: r.\n" in printed(report(workers=8, workers_reason="8 workers, 2 at first: r"))


def test_a_chunk_reported_twice_counts_once():
    tally = Tally(Clock())
    tally(started())
    tally(chunk_done(1))
    tally(chunk_done(1, worker=2))
    assert tally.view().counts.read == 100


def test_a_resumed_run_starts_from_what_is_done_and_its_rates_count_this_sitting():
    clock = Clock()
    tally = Tally(clock)
    tally(started(chunks=4, rows=400, done=2, read=200))
    assert tally.view().fraction == 0.5
    clock.now = 5.0
    tally(chunk_done(3))
    view = tally.view()
    assert (view.counts.read, view.mean, view.current) == (300, 20, 20)


def test_the_current_rate_forgets_what_is_older_than_ten_seconds():
    clock = Clock()
    tally = Tally(clock)
    tally(started(chunks=9, rows=900))
    clock.now = 4.0
    tally(chunk_done(1, read=400))
    assert (tally.view().current, tally.view().peak) == (100, 100)
    clock.now = 60.0
    view = tally.view()
    assert view.current == 0
    assert view.peak == 100
    assert view.mean == pytest.approx(400 / 60)


def test_a_failed_chunk_is_counted_and_no_longer_waited_for():
    tally = Tally(Clock())
    tally(started(chunks=2, rows=200))
    for chunk in (1, 2):
        tally(ChunkStarted(chunk=chunk, worker=chunk, estimated_rows=100))
    tally(ChunkFailed(chunk=1, worker=1, attempts=3, error="deadlock"))
    view = tally.view()
    assert (view.failed, view.fraction, view.workers[0].step) == (1, 0.5, "idle")


@pytest.mark.parametrize("width", [24, 40, 80, 200])
def test_every_line_fits_the_terminal(width):
    tally = Tally(Clock())
    tally(started(job="a [bold]job[/bold] → with a name that is long " * 3, chunks=10**6, rows=10**11, workers=40))
    for worker in range(1, 41):
        tally(ChunkStarted(chunk=worker * 10**5, worker=worker, estimated_rows=10**6))
        tally(StepStarted(chunk=worker * 10**5, worker=worker, step="transform", rows=10**8))
    lines = drawn(tally.view(), width, 20)
    assert max(map(len, lines)) <= width
    assert len(lines) < 20
    assert lines[0].startswith("a [bold]job[/bold]")
    assert "more workers" in lines[-1]


def test_a_message_with_markup_and_a_terminal_escape_is_printed_as_it_is():
    stream = Terminal()
    with LiveProgress(stream) as progress:
        progress(Notice(message="emptied [bold red]public.flights[/] \x1b[2J"))
    assert "emptied [bold red]public.flights[/] \\x1b[2J" in stream.getvalue()


def test_an_interrupted_display_leaves_the_cursor_visible_and_its_last_numbers():
    stream = Terminal()
    with suppress(KeyboardInterrupt), LiveProgress(stream) as progress:
        progress(started())
        progress(chunk_done(1))
        raise KeyboardInterrupt
    text = stream.getvalue()
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert "25 %: read 100 of about 400" in text


def test_a_second_interrupt_while_the_display_is_taken_away_leaves_the_cursor_visible(monkeypatch):
    stream = Terminal()
    progress = LiveProgress(stream)
    progress.__enter__()
    live = progress._live

    def interrupted():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(live, "stop", interrupted)
        with pytest.raises(KeyboardInterrupt):
            progress.__exit__()
    text = stream.getvalue()
    live.stop()
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_a_narrower_terminal_clears_the_lines_that_it_broke(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    with LiveProgress(stream) as progress:
        progress(started(job="x" * 100))
        progress._live.refresh()
        stream.truncate(0)
        progress._console.width = 40
        progress._live.refresh()
        assert stream.getvalue().lstrip("\0").startswith("\r\x1b[")
        assert "\x1b[J" in stream.getvalue()


def test_plain_progress_writes_whole_lines_and_a_line_each_interval():
    stream = io.StringIO()
    ticked = threading.Event()
    write = stream.write
    stream.write = lambda text: (write(text), ticked.set() if " %: " in text else None)
    with PlainProgress(stream, interval_seconds=0.01) as progress:
        progress(Notice(message="two\nlines [x]", level="warning"))
        progress(started())
        progress(ChunkRetried(chunk=1, worker=1, attempt=1, wait_seconds=0.8, error="gone"))
        progress(ChunkFailed(chunk=2, worker=1, attempts=3, error="deadlock"))
        progress(Stopping(reason="told to"))
        assert ticked.wait(10)
        progress(RunFinished(report=report()))
    assert not progress._timer.is_alive()
    lines = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()
    assert lines[0] == "warning: two\\nlines [x]"
    assert lines[1].endswith("4 chunks, about 400 rows, 2 workers")
    assert "chunk 1: try 1 failed, again in 0.80 s: gone" in lines
    assert "chunk 2 failed after 3 tries: deadlock" in lines
    assert "stopping when the chunks under way are done: told to" in lines
    assert "100 %: read 0, loaded 0" in lines[-1]


def test_json_progress_writes_one_object_for_each_event():
    stream = io.StringIO()
    with JsonProgress(stream) as progress:
        for event in (Notice(message="a\nb"), started(), chunk_done(1), RunFinished(report=report())):
            progress(event)
    rows = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [row["event"] for row in rows] == ["Notice", "RunStarted", "ChunkDone", "RunFinished"]
    assert all(row["time"].endswith("+00:00") for row in rows)
    assert rows[3]["report"]["counts"]["quarantined"] == 76


@pytest.mark.parametrize(
    ("mode", "quiet", "term", "terminal", "expected"),
    [
        ("auto", False, "xterm", True, LiveProgress),
        ("auto", False, "dumb", True, PlainProgress),
        ("auto", False, "xterm", False, PlainProgress),
        ("live", False, "xterm", False, PlainProgress),
        ("plain", False, "xterm", True, PlainProgress),
        ("json", True, "xterm", True, JsonProgress),
    ],
)
def test_the_display_follows_the_mode_and_the_terminal(monkeypatch, mode, quiet, term, terminal, expected):
    monkeypatch.setenv("TERM", term)
    stderr = Terminal() if terminal else io.StringIO()
    assert type(make_progress(mode, quiet=quiet, stdout=io.StringIO(), stderr=stderr)) is expected


@pytest.mark.parametrize(("mode", "quiet"), [("off", False), ("auto", True)])
def test_a_silent_run_still_warns(mode, quiet):
    stdout, stderr = io.StringIO(), Terminal()
    with make_progress(mode, quiet=quiet, stdout=stdout, stderr=stderr) as progress:
        for event in (Notice(message="fine"), Notice(message="odd", level="warning"), started(), chunk_done(1)):
            progress(event)
        progress(RunFinished(report=report()))
    assert (stdout.getvalue(), stderr.getvalue()) == ("", "warning: odd\n")


def test_a_closed_stream_does_not_stop_the_run():
    stream = io.StringIO()
    with PlainProgress(stream) as progress:
        stream.close()
        progress(Notice(message="nobody hears this"))
        progress(RunFinished(report=report()))


def test_the_report_says_what_became_of_every_row_and_what_to_do_next():
    assert printed(report()).startswith(
        f"Run {RUN} done: 336,700 of 336,776 rows of flights → public.flights in 2.0 s (168,388 rows/s)\n"
    )
    lines = printed(report()).splitlines()
    assert "  read         336,776" in lines
    assert "  duplicate          0" in lines
    assert "  ✓ balanced: read = loaded + unchanged + duplicate + filtered + quarantined" in lines
    assert "  load          3.0 s   75 %" in lines
    assert "  76  known [origin]" in lines
    assert f"Next: etl quarantine {RUN}  # shows what was rejected, and why" in lines


def test_the_report_of_a_run_that_is_done_names_the_replay_of_what_it_quarantined():
    command = f"etl replay {RUN} --key id"
    lines = printed(report(), replay_command=command).splitlines()
    assert f"      {command}  # sends it again when it is mended" in lines
    assert not any("etl show" in line for line in lines)
    assert command not in printed(report(counts=Counts(read=5, loaded=5)), replay_command=command)
    assert command not in printed(report(outcome="stopped"), resume_command="etl run", replay_command=command)


def test_a_replay_is_typed_with_the_flags_of_its_run(monkeypatch):
    typed = (
        "etl chunked --key id --order desc --fresh --rule 'a: x > 0' --rule=b:y --full --source postgresql://u:pw@h/d"
    )
    monkeypatch.setattr("sys.argv", shlex.split(typed))
    assert typed_again("replay", "R1") == (
        "etl replay R1 --key id --check 'a: x > 0' --check=b:y --source 'postgresql://u:…@h/d'"
    )


def test_a_balance_that_does_not_add_up_is_said():
    text = printed(report(counts=Counts(read=10, loaded=8)))
    assert "✗ not balanced: +2 rows read are not accounted for" in text


def test_the_report_of_a_stopped_run_names_failures_and_the_command_that_goes_on():
    failed = [FailedChunk(chunk=n, attempts=1, error=f"bad [{n}]") for n in range(1, 8)]
    text = printed(
        report(
            outcome="stopped", resumable=True, chunks_done=0, failed=failed, stop_reason="ten failures", counts=Counts()
        ),
        resume_command="etl chunked --key id",
        look_back_options="--target postgresql://host/db",
    )
    assert text.startswith(f"Run {RUN} stopped after 0 of 7 chunks of flights, 0 rows loaded, 2.0 s: ten failures\n")
    assert "  chunk 5 after 1 try: bad [5]\n  and 2 more\n" in text
    assert "Next: etl chunked --key id  # goes on with 7 chunks left\n" in text
    assert f"      etl show {RUN} --target postgresql://host/db  # shows every chunk\n" in text


def test_a_quiet_report_is_silent_about_success_and_not_about_failure():
    assert printed(report(), quiet=True) == ""
    assert "interrupted by SIGINT" in printed(report(outcome="interrupted", signal=2), quiet=True)


def test_a_narrow_encoding_does_not_cost_the_report():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    print_report(report(job="flüge"), stream)
    assert rb"rows of fl\xfcge -> public.flights" in raw.getvalue()


def test_times_and_foreign_text_are_written_for_people():
    assert [duration(s) for s in (-1, 0.123, 12.34, 99.96, 245)] == ["0.00 s", "0.12 s", "12.3 s", "1:40", "4:05"]
    assert [clock_time(s) for s in (7, 3600 * 3 + 245)] == ["0:07", "3:04:05"]
    assert one_line("a\tb\u202e\x1b[0m") == "a\\tb\\u202e\\x1b[0m"
