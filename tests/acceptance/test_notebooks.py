"""The notebooks run as they are, from a clone, on the embedded server; what is committed is what they print."""

from __future__ import annotations

import asyncio
import json
import re
import warnings
from pathlib import Path

import pytest
import support

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

TOLD = {
    "explore_runs": "336,776 rows in 17 chunks: 327,295 loaded, 9,481 quarantined (2.8%). Tried more than once: chunk 7.",
    "quality": "51 weeks, 11 checks: 561 results, of which 21 failed and 21 only warn.",
}
PICTURE = "image/svg+xml"
PLACES = re.compile(r"/root/|/home/|/tmp/|/var/|/Users/|/work/|[A-Z]:\\\\|127\.0\.0\.1|localhost|password")


def cells_of(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def outputs_of(notebook):
    return [output for cell in cells_of(notebook) for output in cell["outputs"]]


def pictures_of(notebook):
    return [output["data"][PICTURE] for output in outputs_of(notebook) if PICTURE in output.get("data", {})]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return request.param


def test_every_notebook_is_run():
    assert {path.stem for path in NOTEBOOKS} == set(TOLD)


def test_what_is_committed_was_run_in_order_has_its_pictures_and_names_no_place(notebook):
    found = json.loads(notebook.read_text(encoding="utf-8"))
    assert [cell["execution_count"] for cell in cells_of(found)] == list(range(1, len(cells_of(found)) + 1))
    assert len(pictures_of(found)) >= 6
    assert all("".join(picture).startswith("<svg") for picture in pictures_of(found))
    outputs = json.dumps(outputs_of(found), ensure_ascii=False)
    assert PLACES.findall(outputs) == []
    assert {output["output_type"] for output in outputs_of(found)} <= {"execute_result", "display_data"}
    for cell in found["cells"]:
        if cell["cell_type"] == "markdown":
            text = re.sub(r"\(.*?\)|`.*?`", "", "".join(cell["source"]))
            assert re.findall(r"\d[\d,.]* ?(?:%|rows|s\b|MB)", text) == [], "numbers come from cells"


def test_a_notebook_runs_from_a_clone_without_editing(notebook, etl_home, tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason='the extra is missing: pip install "keyhaul[notebooks]"')
    nbclient = pytest.importorskip("nbclient", reason='the extra is missing: pip install "keyhaul[notebooks]"')
    for name in ("altair", "ipykernel", "vl_convert"):
        pytest.importorskip(name, reason='the extra is missing: pip install "keyhaul[notebooks]"')
    for name, value in support.clean_environment(etl_home, {"IPYTHONDIR": str(tmp_path / "ipython")}).items():
        monkeypatch.setenv(name, value)
    read = nbformat.read(notebook, as_version=4)
    for cell in read.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries that run it; the notebook's own are looked for below
        client = nbclient.NotebookClient(
            read, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(notebook.parent)}}
        )
        asyncio.run(client.async_execute())
    printed = [output.text for output in outputs_of(read) if output.output_type == "stream"]
    assert printed == [], "neither a warning nor a log"
    committed = json.loads(notebook.read_text(encoding="utf-8"))
    assert len(pictures_of(read)) == len(pictures_of(committed))
    told = " ".join(output.data.get("text/markdown", "") for output in outputs_of(read) if "data" in output)
    assert TOLD[notebook.stem] in told
