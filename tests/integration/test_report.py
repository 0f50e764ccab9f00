"""The page of a run: what it says, what it must not say, and how a browser lays it out."""

import html
import json
import re
import shutil
import stat
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import psycopg
import pytest
import tables
from moving import rows, run_sql

import keyhaul
from keyhaul import events
from keyhaul.config.job import load_job
from keyhaul.control import Control
from keyhaul.execution.engine import run
from keyhaul.pages import report as htmlreport

HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(2)>"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Elements(HTMLParser):
    """Every element of a page with its attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text, self.open = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))


@pytest.fixture
def orders(databases):
    run_sql(
        databases[0],
        "create table public.orders as select n as id, n % 100 as bucket, 'value-' || n as note"
        " from generate_series(1, 20000) n",
        "alter table public.orders add primary key (id)",
    )
    return databases


def move(databases, observe=None, **more):
    source, target = databases
    given = {"source": source, "target": target, "table": "public.orders", "key": "id", "chunk": 2000, "workers": 2}
    return keyhaul.run({**given, **more}, observe)


@pytest.fixture
def rough(orders):
    """A run with 3 % in quarantine, of which one chunk lost its session and was tried again."""
    lost = []

    def terminate(event):
        if isinstance(event, events.RunStarted):
            lost.append(event.run_id)
        elif isinstance(event, events.StepStarted) and event.step == "load" and event.chunk == 5 and len(lost) == 1:
            name = f"keyhaul {lost[0]} worker {event.worker}"
            lost.append(name)
            end = "select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = %s"
            with psycopg.connect(orders[1], autocommit=True) as conn:
                assert conn.execute(end, [name]).fetchall() == [(True,)]

    report = move(orders, terminate, rule=["not_seven: bucket <> 7", "low: bucket < 98"])
    assert (report.outcome, report.counts.quarantined) == ("done", 600)
    return report


def words_of(target, *, show_values=False):
    return Elements(page_of(target, keyhaul.runs(target)["run_id"][0], show_values=show_values)).words


def page_of(target, run_id, *, show_values=False):
    with psycopg.connect(target, autocommit=True) as conn:
        return htmlreport.page(htmlreport.read_findings(conn, "keyhaul", run_id, show_values=show_values))


def test_the_page_has_the_balance_the_retry_the_reasons_the_job_and_the_versions(orders, rough):
    read = Elements(page_of(orders[1], rough.run_id))
    assert read.open == [], "every element is closed"
    for said in (
        "orders done",
        "loaded 19,400 97.0 %",
        "quarantined 600 3.0 %",
        "read 20,000",
        "✓ balanced: every row read has its place",
        "↻ tried again after a transient error",
        "chunks 10 of 10, 1 retried",
        "low 400 records, 66.7 %",
        "not_seven 200 records, 33.3 %",
        "chunk 1, record 6; chunk 1, record 106; chunk 1, record 206 not (bucket <> 7)",
        "Limits that acted memory_limit 80% of memory did not act",
        "chunk: 2000",
        f"keyhaul {keyhaul.__version__}, process",
        "target now PostgreSQL 18",
        "without row values",
    ):
        assert said in read.words, said
    lanes = [attributes["aria-label"] for tag, attributes in read.found if tag == "svg" and "aria-label" in attributes]
    assert {"worker 1", "worker 2", "rows read per second", "time since the beginning"} <= set(lanes)
    assert re.search(r"chunk 5: 2,000 rows, .* 2 tries", read.words)


def test_values_are_on_the_page_only_when_asked_for(orders, rough):
    plain, full = (page_of(orders[1], rough.run_id, show_values=asked) for asked in (False, True))
    assert "value-" not in plain
    assert "key 7" not in plain
    assert "2001" not in Elements(plain).words, "a chunk's bound is the key of a row"
    for said in ('"note": "value-7"', "key 7", "2001 to 4001", "with row values"):
        assert said in Elements(full).words, said


def test_what_a_name_or_a_message_holds_is_text_on_the_page(databases):
    source, target = databases
    run_sql(
        source,
        f'create table public."{HOSTILE}" (id int primary key, "{HOSTILE}" text)',
        f"""insert into public."{HOSTILE}" values (1, '{HOSTILE}'), (2, null)""",
    )
    report = keyhaul.run(
        {
            "source": source, "target": target, "table": f'public."{HOSTILE}"', "key": "id", "job": "hostile",
            "set": ["x = id + 0"], "rule": [f"not_one: id <> 1 or '{HOSTILE}' = ''"],
        }
    )  # fmt: skip
    assert report.counts.quarantined == 1
    run_sql(
        target,
        f"update keyhaul.quarantine set message = $${HOSTILE}$$, rules = array[$${HOSTILE}$$], key = $${HOSTILE}$$",
        f"update keyhaul.runs set job = $${HOSTILE}$$, host = $${HOSTILE}$$, stop_reason = $${HOSTILE}$$,"
        f" version = $${HOSTILE}$$, source = $${HOSTILE}$$",
        f"update keyhaul.chunks set error = $${HOSTILE}$$, attempts = 2",
    )
    page = page_of(target, report.run_id, show_values=True)
    read = Elements(page)
    assert read.open == []
    assert not {"script", "img", "iframe", "object", "link", "a", "form"} & {tag for tag, _ in read.found}
    assert not [name for _, attributes in read.found for name in attributes if name.startswith("on")]
    assert page.count(html.escape(HOSTILE)) >= 10


def test_the_page_fetches_nothing_and_says_so_to_the_browser(orders, rough):
    page = page_of(orders[1], rough.run_id, show_values=True)
    policy = [a["content"] for tag, a in Elements(page).found if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert not re.search(r"https?:|//[a-z]|url\(|@import|src=|href=", page)


def test_no_password_is_on_the_page(orders, rough):
    passwords = [psycopg.conninfo.conninfo_to_dict(uri)["password"] for uri in orders]
    page = page_of(orders[1], rough.run_id, show_values=True)
    assert not [password for password in passwords if password in page]


def test_a_run_that_moved_nothing_or_was_given_up_has_a_page(databases):
    run_sql(databases[0], "create table public.orders (id int primary key)")
    report = move(databases)
    words = Elements(page_of(databases[1], report.run_id)).words
    assert "No record was rejected." in words
    run_sql(
        databases[1],
        "update keyhaul.chunks set status = 'failed', error = 'the disk is full', attempts = 6, started_at = null",
        "update keyhaul.runs set status = 'stopped', stop_reason = '1 of 1 chunks failed'",
    )
    words = Elements(page_of(databases[1], report.run_id)).words
    assert "orders stopped" in words
    assert "chunk 1 failed: the disk is full" in words
    run_sql(
        databases[1], "update keyhaul.chunks set status = 'planned', ended_at = null, worker = null, sitting = null"
    )
    assert "No chunk has ended yet." in Elements(page_of(databases[1], report.run_id)).words


def test_rules_across_the_run_are_in_the_frame_on_the_page_and_in_the_exit_code(orders, etl, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(
        f'source: {{uri: "{orders[0]}", table: public.orders}}\nkey: id\ntarget: {{uri: "{orders[1]}"}}\n'
        "run_rules:\n  enough: {row_count: {min: 30000}}\n  some: {row_count: {min: 1}}\n"
    )
    report = keyhaul.run(path)
    checks = keyhaul.runs(orders[1])["run_checks"].to_list()[0]
    assert [(check["name"], check["passed"], check["offenders"]) for check in checks] == [
        ("enough", False, 0),
        ("some", True, 0),
    ]
    words = Elements(page_of(orders[1], report.run_id)).words
    assert "enough ✗ failed (error) 20,000 rows, expected at least 30,000" in words
    assert "some ✓ passed" in words
    assert "✗ rules across the run failed: enough" in words.partition("Balance")[0]
    assert etl("show", "last", "--follow", "--target", orders[1]).returncode == 1


def test_the_page_of_several_tables_has_the_rows_of_each(databases, tmp_path):
    tables.create(databases, orders=50)
    keyhaul.run(tables.write(tmp_path / "orders.yaml", databases))
    text = words_of(databases[1])
    assert "Rows by table A record gives rows of all these tables, or of none." in text
    assert "public.orders 50" in text
    assert re.search(r"public\.order_lines \d+", text)


def test_the_page_of_an_incremental_run_says_what_was_read_and_the_values_only_when_asked(orders):
    run_sql(orders[0], "alter table public.orders add column changed int not null default 4711")
    job = {"source": orders[0], "target": orders[1], "table": "public.orders", "key": "id", "incremental": "changed"}
    keyhaul.run(job)
    assert "Incremental by changed: read all rows. The next run begins at" in words_of(orders[1])
    keyhaul.run(job)
    told = "Incremental by changed: read rows from the last watermark on, less its lag"
    assert f"{told}." in words_of(orders[1])
    assert "4711" not in words_of(orders[1]).partition("Incremental")[2].partition("Balance")[0]
    assert f"{told} (changed ≥ 4711)." in words_of(orders[1], show_values=True)
    run = keyhaul.runs(orders[1]).row(0, named=True)
    assert (run["incremental"], run["since"], run["watermark"]) == ("changed", "4711", "4711")


def test_the_page_says_what_each_limit_did_in_all_sittings_together(orders, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(
        f'source: {{uri: "{orders[0]}", table: public.orders}}\nkey: id\ntarget: {{uri: "{orders[1]}"}}\nchunk: 1000\n'
        "workers: 2\nrate_limit: 12000\nmemory_limit: 1MB\n"
    )
    control = Control()

    def stop(event):
        if isinstance(event, events.ChunkDone) and event.chunk >= 6:
            control.stop("it is late")

    first = run(load_job(path, {}, {}), stop, control, fresh=False)
    one = keyhaul.runs(orders[1])["limits"].to_list()[0]
    assert [(limit["limit"], limit["setting"]) for limit in one] == [
        ("rate_limit", "12,000 rows/s"),
        ("memory_limit", "1MB"),
    ]
    assert one[0]["waited_seconds"] > 0
    run_sql(orders[1], "update keyhaul.runs set limits = jsonb_set(limits, '{rate_limit,waited_seconds}', '1000')")
    report = keyhaul.run(path)
    assert (first.outcome, report.outcome, report.run_id) == ("stopped", "done", first.run_id)
    waited = keyhaul.runs(orders[1])["limits"].to_list()[0][0]["waited_seconds"]
    assert 1000 < waited < 1100, "added to what the first sitting had"
    words = words_of(orders[1])
    assert "rate_limit 12,000 rows/s workers waited 16:4" in words
    assert re.search(r"memory_limit 1MB (did not act|workers waited)", words)
    run_sql(orders[1], "update keyhaul.runs set limits = '{}'")
    assert "Limits that acted Not known: it is written when a sitting ends" in words_of(orders[1])


def test_a_limit_that_makes_chunks_smaller_is_told(databases):
    run_sql(
        databases[0],
        "create table public.orders as select n as id, repeat(md5(n::text), 3000) as note from generate_series(1, 400) n",
        "alter table public.orders add primary key (id)",
    )
    report = move(databases, memory_limit="1MB", chunk=400)
    (limit,) = keyhaul.runs(databases[1])["limits"].to_list()[0]
    assert re.fullmatch(r"chunks of \d+ rows, not 400", limit["effect"])
    assert f"memory_limit 1MB {limit['effect']}" in words_of(databases[1])
    assert report.outcome == "done"


def test_a_chunk_began_before_its_steps_and_ended_after_them(orders, rough):
    late = rows(
        orders[1],
        "select chunk from keyhaul.chunks where extract(epoch from ended_at - started_at) + 0.001"
        " < read_seconds + transform_seconds + stage_seconds + load_seconds",
    )
    assert late == []


def test_the_command_writes_a_whole_file_and_overwrites_none(orders, rough, etl, tmp_path):
    path = tmp_path / "report.html"
    done = etl("report", "last", "-o", str(path), "--target", orders[1])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"wrote run {rough.run_id} to {path}\n"
    assert Elements(path.read_text(encoding="utf-8")).open == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = etl("report", rough.run_id, "-o", str(path), "--target", orders[1])
    assert again.returncode == 2
    assert "it exists already" in again.stderr
    assert etl("report", "last", "--force", "-o", str(path), "--target", orders[1], "--show-values").returncode == 0
    assert "value-7" in path.read_text(encoding="utf-8")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


# --- in a browser ------------------------------------------------------------------------------------


@pytest.fixture
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed (Debian: apt install chromium)")
    return found


def look(browser, folder, page, width, scheme):
    """Lay the page out in a frame of this width; return what a script outside the frame measures."""
    measure = """
      const frame = document.querySelector('iframe'), inside = frame.contentDocument, root = inside.documentElement;
      const wide = [...inside.querySelectorAll('main *')].filter(
        e => !e.closest('.scroll') && e.getBoundingClientRect().right > root.clientWidth + 1).map(e => e.outerHTML);
      const texts = [...inside.querySelectorAll('svg text')].filter(e => e.getBoundingClientRect().width > 0);
      const paper = e => getComputedStyle(e).backgroundColor;
      document.title = JSON.stringify({
        width: root.scrollWidth, wide: wide.slice(0, 3), ground: paper(inside.body),
        smallest: Math.min(...texts.map(e => e.getBoundingClientRect().height)),
        bars: inside.querySelectorAll('.lane rect.fill-read').length,
        hidden: [...inside.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length,
        scripts: inside.querySelectorAll('script').length,
      });
    """
    (folder / "outer.html").write_text(
        f'<!doctype html><title></title><iframe srcdoc="{html.escape(page)}" style="width:{width}px;height:3000px;border:0">'
        f"</iframe><script>document.querySelector('iframe').onload = () => {{ {measure} }}</script>",
        encoding="utf-8",
    )
    command = [
        browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=5000",
        f"--user-data-dir={folder / 'profile'}", f"--blink-settings=preferredColorScheme={int(scheme == 'light')}",
        "--window-size=1400,3000", "--dump-dom", (folder / "outer.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title, done.stderr
    return json.loads(html.unescape(title[1]))


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize(("scheme", "ground"), [("light", "rgb(245, 246, 248)"), ("dark", "rgb(15, 18, 22)")])
def test_a_browser_lays_the_page_out_on_every_width_and_in_both_schemes(
    orders, rough, browser, tmp_path, width, scheme, ground
):
    seen = look(browser, tmp_path, page_of(orders[1], rough.run_id, show_values=True), width, scheme)
    assert seen["wide"] == []
    assert seen["width"] <= width
    assert seen["hidden"] == 0, "nothing stands beyond the edge of a table that scrolls"
    assert seen["ground"] == ground
    assert seen["smallest"] >= 12, "text of a drawing keeps its size on a phone"
    assert (seen["bars"], seen["scripts"]) == (10, 0)


def test_the_page_is_printed_on_a_few_sheets(orders, rough, browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(page_of(orders[1], rough.run_id), encoding="utf-8")
    printed = Path(tmp_path / "page.pdf")
    command = [
        browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--print-to-pdf={printed}",
        f"--user-data-dir={tmp_path / 'profile'}", "--blink-settings=preferredColorScheme=0", page.as_uri(),
    ]  # fmt: skip
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    sheets = len(re.findall(rb"/Type\s*/Page[^s]", printed.read_bytes()))
    assert 1 <= sheets <= 4
