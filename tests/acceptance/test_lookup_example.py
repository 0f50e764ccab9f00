"""The example with lookups, as its first lines say to run it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_example_with_lookups_runs_on_the_embedded_default(etl):
    done = etl("run", "configs/flights_lookup.yaml", "--fresh", cwd=ROOT)
    assert (done.returncode, "loaded       336,776" in done.stdout) == (0, True), done.stdout + done.stderr


def test_a_lookup_file_that_is_not_there_is_one_message_with_its_line_and_exit_code_2(etl, tmp_path):
    done = etl("run", str(ROOT / "configs" / "flights_lookup.yaml"), "--fresh", cwd=tmp_path)
    assert done.returncode == 2
    assert "flights_lookup.yaml line 12: read lookup file data/airlines.csv: got no such file" in done.stderr
    assert "Traceback" not in done.stderr
