"""The JSON schema of a job file, for editors, from the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keyhaul.config.job import Job
from keyhaul.config.parts import AUTO
from keyhaul.config.sourcekinds import KINDS, PostgresSource

if TYPE_CHECKING:
    from keyhaul.config.sourcekinds import Source


def json_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a job file, for editors."""
    schema = Job.model_json_schema()
    for part in (schema, *schema["$defs"].values()):
        part.pop("title", None)
        for value in part["properties"].values():
            for name in ("title", "expected", "flags", "variable"):
                value.pop(name, None)
            if not isinstance(value.get("default"), str | int) or value["default"] == "":
                value.pop("default", None)
    schema["properties"]["allow_quarantined"]["default"] = "0"
    chunk = schema["properties"]["chunk"]
    chunk["anyOf"] = [*chunk.pop("oneOf"), {"const": AUTO}]
    _tell_kinds_apart(schema)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "keyhaul job"}
    return {**head, **schema, "description": "A job file of keyhaul."}


def _tell_kinds_apart(schema: dict[str, Any]) -> None:
    """Say which URIs and paths mean which kind of source, and which kinds need a key."""
    source = schema["properties"]["source"]
    source.pop("discriminator")
    source["anyOf"] = models = source.pop("oneOf")
    keyless = []
    for kind, reference in zip(KINDS.values(), models, strict=True):
        part = schema["$defs"][kind.__name__]
        part.pop("required", None)
        part["properties"]["kind"].pop("default")
        part["anyOf"] = [{"required": ["kind"]}, *_addresses(kind)]
        if not kind.needs_key:
            keyless.append({"properties": {"source": reference}, "required": ["source"]})
    schema["anyOf"] = [{"required": schema.pop("required")}, *keyless]


def _addresses(kind: type[Source]) -> list[dict[str, Any]]:
    """Return what an address is by which the kind is known; a variable may be any."""
    endings = [f"[.]{''.join(f'[{c}{c.upper()}]' for c in ending[1:])}$" for ending in kind.endings]
    schemes, words = (f"^{scheme}://" for scheme in kind.schemes), (f"^{word}$" for word in kind.words)
    uris = [*schemes, *words, *endings, r"[$]\{"]
    if kind is PostgresSource:  # without an address it is the embedded one
        return [{"properties": {"uri": {"pattern": "|".join(uris)}}}]
    known = {"uri": uris, "path": [*endings, r"[$]\{"]}
    return [
        {"required": [name], "properties": {name: {"pattern": "|".join(patterns)}}} for name, patterns in known.items()
    ]
