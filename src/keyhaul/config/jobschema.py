"""The JSON schema of a job file, for editors, from the model."""

from __future__ import annotations

from typing import Any

from keyhaul.config.job import Job
from keyhaul.config.layers import AUTO


def json_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a job file, for editors."""
    schema = Job.model_json_schema()
    for part in (schema, *schema["$defs"].values()):
        part.pop("title", None)
        for value in part["properties"].values():
            for name in ("title", "expected", "flag", "variable"):
                value.pop(name, None)
            if not isinstance(value.get("default"), str | int):
                value.pop("default", None)
    schema["properties"]["allow_quarantined"]["default"] = "0"
    chunk = schema["properties"]["chunk"]
    chunk["anyOf"] = [*chunk.pop("oneOf"), {"const": AUTO}]
    for part in (schema, schema["$defs"]["Target"]):
        for value in part["properties"].values():
            if value.get("default") == "":
                del value["default"]
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "keyhaul job"}
    return {**head, **schema, "description": "A job file of keyhaul."}
