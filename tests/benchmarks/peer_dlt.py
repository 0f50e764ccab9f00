"""The finished rows by dlt: connectorx reads them as Arrow, parquet files carry them, ADBC loads them.

dlt has no step that drops the older copies, so the source's SQL does the job; nothing is quarantined.
Runs in a venv of its own: ``peer_dlt.py SOURCE TARGET QUERY DATASET``.
"""

import sys

import connectorx
import dlt

source, target, query, dataset = sys.argv[1:]


@dlt.resource(name="orders", write_disposition="append", columns={"id": {"unique": True, "nullable": False}})
def orders():
    yield connectorx.read_sql(source, query, return_type="arrow", protocol="binary")


pipeline = dlt.pipeline(
    "keyhaul_bench",
    pipelines_dir="pipelines",
    destination=dlt.destinations.postgres(target),
    dataset_name=dataset,
)
pipeline.run(orders(), loader_file_format="parquet").raise_on_failed_jobs()
