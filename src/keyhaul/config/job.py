"""One job: from a YAML file, flags and ``ETL_*`` variables (flag > variable > file > default) to a frozen `Job`.

The model is the only description of a job's settings: the flags, variables, the JSON schema and
docs/configuration.md are read from its fields.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import PrivateAttr, ValidationError

from keyhaul.config import layers, runrules, steps, tablestep
from keyhaul.config.allowance import Allowance
from keyhaul.config.draft import Draft, Place, spell
from keyhaul.config.fields import Allowed, MemoryOf, Names, PercentOf, Rules, RunRules, Steps, Targets
from keyhaul.config.filesource import FilesSource
from keyhaul.config.given import hidden_in, read_given, write_given
from keyhaul.config.identity import step_identity
from keyhaul.config.parts import (
    AUTO,
    EMBEDDED,
    EVERYWHERE,
    MOVES,
    AutoChunk,
    ChunkOf,
    Dedup,
    Flag,
    Incremental,
    Part,
    Target,
    setting,
)
from keyhaul.config.settings import Setting, settings_of
from keyhaul.config.sourcekinds import AnySource, PostgresSource, Source, SqliteSource, TablesSource
from keyhaul.config.steps import Rule, Step
from keyhaul.config.yamlfile import read_yaml
from keyhaul.errors import ConfigError
from keyhaul.quantity import read_memory
from keyhaul.redaction import hide_all

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from pydantic_core import ErrorDetails

_UNSEEN = r"\s\x7f-\xa0\xad\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff\ufff0-\uffff"
JOB_NAME = rf"[^\x00-/:-@\[-^`{{-~{_UNSEEN}][^\x00-,/:-@\[-^`{{-~{_UNSEEN}]{{0,62}}"
"""Letters and digits of any script, ``_``, ``.`` and ``-``; written so that each regex engine agrees."""
_NAME_CHARACTERS = 63

__all__ = [
    "EMBEDDED",
    "Allowance",
    "AutoChunk",
    "Dedup",
    "FilesSource",
    "Incremental",
    "Job",
    "PostgresSource",
    "Rule",
    "Setting",
    "Source",
    "SqliteSource",
    "Step",
    "TablesSource",
    "Target",
    "hidden_in",
    "load_job",
    "settings",
]


@dataclass(frozen=True, slots=True)
class _Given:
    """How a job was given; two jobs are the same however they were."""

    text: str = field(default="", compare=False)


class Job(Part):
    """What to move: validated, frozen, picklable, and without secrets in its repr."""

    _given: _Given = PrivateAttr(default_factory=_Given)

    job: str = setting(
        "",
        "The job's name in the ledger; the table's name, or query-XXXXXXXX, by default.",
        "1 to 63 of letters, digits, _ . - (not . or - first)",
        Flag("--job", value="NAME", help="Name in the ledger [the table's].", commands=EVERYWHERE),
        "ETL_JOB",
        pattern=f"^{JOB_NAME}$",
    )
    source: AnySource = setting(PostgresSource(), "Where the rows come from.", "a mapping with uri and table or query")
    key: Names = setting(
        ...,
        "Column or columns that the chunks are cut by; for kind sqlite the primary key or the rowid by default.",
        "a column or a list of different columns",
        Flag("--key", value="K[,K2…]", help="Columns that the chunks are cut by.", commands=EVERYWHERE),
        "ETL_KEY",
    )
    chunk: ChunkOf = setting(
        50_000,
        "Rows of a chunk; or auto, chunks of the time that they take, with the settings below.",
        "a whole number from 1, auto, or a mapping such as {target_seconds: 2}",
        Flag("--chunk", value="N|auto", help="Rows of a chunk [50000]."),
        "ETL_CHUNK",
    )
    transform: Steps = setting(
        (),
        "Steps, in order: set, where, rename, drop, lookup, python.",
        "a list of steps",
        (
            Flag("--set", value="'COL = EXPR'", help="Compute a column.", many=True, commands=EVERYWHERE),
            Flag("--where", value="EXPR", help="Keep rows for which this is true.", many=True, commands=EVERYWHERE),
        ),
    )
    incremental: Incremental | None = setting(
        None,
        "Read only what is new since the last done run of the job; mode upsert is the default then. Rows deleted in "
        "the source stay in the target.",
        "a mapping with column",
    )
    dedup: Dedup | None = setting(None, "Removal of copies.", "a mapping with on")
    rules: Rules = setting(
        (),
        "Conditions in DuckDB SQL that each row must meet.",
        "a mapping",
        (
            Flag(
                "--rule",
                value="'NAME: EXPR'",
                help="Quarantine rows that fail.",
                many=True,
                commands=("move", "verify"),
            ),
            Flag("--check", value="'NAME: EXPR'", help="A rule of the job.", many=True, commands=("replay",)),
        ),
    )
    run_rules: RunRules = setting((), "What must hold of the whole target table after the load.", "a list of rules")
    target: Target = setting(Target.model_construct(), "Where the rows go.", "a mapping with uri and table")
    targets: Targets = setting(
        (), "Several tables that each record becomes rows of, parents first.", "a list of tables with columns"
    )
    workers: int | None = setting(
        None,
        "Chunks at a time; by default one for each core, at most four, and up to 16 while workers wait for a slow "
        "network and more of them help.",
        "a whole number from 1 to 1024",
        Flag("--workers", value="N", help="Chunks at a time [chosen].", commands=EVERYWHERE),
        "ETL_WORKERS",
        ge=1,
        le=1024,
    )
    memory_limit: MemoryOf = setting(
        read_memory("80%"),
        "Memory of this process that the chunks under way are held within, by the measured width of their rows: chunks "
        "get fewer rows where it needs that, and workers wait. One chunk is always under way.",
        "a size from 1MB such as 2GB or 512MB, or 1% to 100% of the machine's or its cgroup's memory",
        Flag("--memory-limit", value="SIZE|P%", help="For chunks under way [80%]."),
        "ETL_MEMORY_LIMIT",
    )
    cpu_limit: PercentOf | None = setting(
        None,
        "CPU of this whole machine above which a worker less is active, looked at each second; none by default.",
        "a percentage such as 85%",
        Flag("--cpu-limit", value="P%", help="Fewer workers while the CPU is above."),
        "ETL_CPU_LIMIT",
    )
    rate_limit: int | None = setting(
        None,
        "Rows a second that all workers together read from the source, over several chunks: each is read at once, "
        "and the next one waits for it.",
        "a whole number from 1",
        Flag("--rate-limit", value="N", help="Rows a second from the source."),
        "ETL_RATE_LIMIT",
        ge=1,
        le=1_000_000_000,
    )
    order: Literal["asc", "desc"] = setting(
        "asc",
        "Lowest or highest keys first.",
        "asc or desc",
        Flag("--order", value="asc|desc", help="Lowest or highest keys first.", commands=MOVES),
        "ETL_ORDER",
    )
    stop_on_error: bool = setting(
        False,
        "Stop at the first failed chunk.",
        "true or false",
        Flag("--stop-on-error", help="Stop at the first failed chunk."),
        "ETL_STOP_ON_ERROR",
    )
    allow_quarantined: Allowed = setting(
        Allowance(),
        "Quarantined rows, or percentage of those read, that still give exit code 0.",
        "a whole number or a percentage such as 5%",
        Flag("--allow-quarantined", value="N|P%", help="Still exit code 0 [0]."),
        "ETL_ALLOW_QUARANTINED",
    )
    checksum: bool = setting(
        False,
        "Store with each chunk how many rows the target has in its key range, and a hash of them, for "
        "etl verify --against-ledger. Costs the target's server CPU for each row that is there (docs/design.md).",
        "true or false",
        Flag("--checksum", help="For etl verify --against-ledger; costs CPU.", commands=MOVES),
        "ETL_CHECKSUM",
    )
    ledger_schema: str = setting(
        "keyhaul",
        "Schema of the ledger's tables in the target.",
        "a schema name of 1 to 63 characters",
        (),
        "ETL_LEDGER_SCHEMA",
        min_length=1,
        max_length=_NAME_CHARACTERS,
    )
    statement_timeout_seconds: int = setting(
        3600,
        "Longest time of one SQL statement, in seconds.",
        "a whole number from 1 to 2000000",
        (),
        "ETL_STATEMENT_TIMEOUT_SECONDS",
        ge=1,
        le=2_000_000,
    )
    lock_timeout_seconds: int = setting(
        60,
        "Longest wait for a lock that another session holds, in seconds; who holds it is told.",
        "a whole number from 1 to 86400",
        (),
        "ETL_LOCK_TIMEOUT_SECONDS",
        ge=1,
        le=86_400,
    )
    network_timeout_seconds: int = setting(
        60,
        "A connection on which nothing moves for so long, while its server waits for us, is cut, in seconds.",
        "a whole number from 1 to 86400",
        (),
        "ETL_NETWORK_TIMEOUT_SECONDS",
        ge=1,
        le=86_400,
    )
    retries: int = setting(
        5,
        "Further tries of a chunk after transient errors.",
        "a whole number from 0 to 100",
        (),
        "ETL_RETRIES",
        ge=0,
        le=100,
    )
    home: str | None = setting(
        None,
        "Folder of the embedded PostgreSQL; the user's cache by default, for root /var/cache/keyhaul.",
        "a folder",
        Flag("--home", value="DIR", help="Folder of the embedded PostgreSQL.", commands=EVERYWHERE),
        "ETL_HOME",
        min_length=1,
    )
    work_dir: str | None = setting(
        None,
        "Folder for the rows of a dedup whose columns do not contain the key; the user's cache by default, for root "
        "/var/cache/keyhaul-work.",
        "a folder",
        Flag("--work-dir", value="DIR", help="For rows that wait while copies are told [cache]."),
        "ETL_WORK_DIR",
        min_length=1,
    )
    work_memory_mb: int = setting(
        256,
        "Megabytes that the search for copies among them may use; what is more goes to that folder.",
        "a whole number from 64",
        (),
        "ETL_WORK_MEMORY_MB",
        ge=64,
        le=1_048_576,
    )

    def identity(self) -> dict[str, Any]:
        """Return what makes this the same job, JSON-ready and without secrets; see `_whole_identity`."""
        hidden: dict[str, Any] = hide_all(self._whole_identity())
        return hidden

    def _whole_identity(self) -> dict[str, Any]:
        """Return what makes this the same job, as it stands: a query or an expression may hold a secret.

        Left out is what may change between a run and its resumption: workers, reader, loader, relay, order,
        limits, home, work folder, and the target's address, which is where the ledger is. A Python step is
        represented by its name and, when its file can be found, the file's SHA-256; so is a lookup's file.
        """
        dedup, delta = self.dedup, self.incremental
        several = {"targets": [tablestep.entry_identity(entry) for entry in self.targets]} if self.targets else {}
        return {
            "source": self.source.identity(),
            "key": list(self.key),
            # An auto chunk's settings may change: a resumed run merges what is open to the pace it then has.
            "chunk": AUTO if isinstance(self.chunk, AutoChunk) else self.chunk,
            "transform": [step_identity(step) for step in self.transform],
            "dedup": {"on": list(dedup.on), "order_by": list(dedup.order_by), "keep": dedup.keep} if dedup else None,
            "rules": {rule.name: steps.rule_identity(rule) for rule in self.rules},
            "target": self.target.model_dump(include={"table", "mode", "conflict", "newer_by"}, mode="json"),
            # Only where they are: the fingerprints of the runs of other jobs stay what they were.
            **({"incremental": {"column": delta.column, "lag": str(delta.lag)}} if delta else {}),
            **({"checksum": True} if self.checksum else {}),
            **several,
        }

    @property
    def given(self) -> str:
        """The job as it was given, as the text of a job file without addresses and secrets; see `keyhaul.config.given`.

        Empty for a job that `load_job` has not made.
        """
        return self._given.text

    def fingerprint(self) -> str:
        """Return the SHA-256 of `identity`, secrets not hidden, in hex: equal for jobs that may resume each other."""
        return hashlib.sha256(json.dumps(self._whole_identity(), sort_keys=True).encode()).hexdigest()


def settings() -> Iterator[Setting]:
    """Yield every setting in the order of the model, a part before what is in it."""
    return settings_of(Job)


def load_job(
    path: Path | None,
    flags: Mapping[str, object],
    environ: Mapping[str, str],
    *,
    reads_source: bool = True,
    text: str = "",
) -> Job:
    """Return the job that a file, flags and the environment describe together; flag > variable > file > default.

    Args:
        path: the YAML file, if any.
        flags: only those given, by their name with ``_`` for ``-``, as text or as the value itself;
            ``column``, ``set``, ``where``, ``rule`` and ``check`` (a rule, as `etl replay` calls it) may be lists.
            ``allow_python`` permits Python steps.
        environ: the environment, for ``ETL_*`` (an empty one counts as unset) and ``${NAME}``.
        reads_source: whether a source that is a file must be there.
        text: of a job file, in its place: `Job.given`, as a ledger has it.

    Raises:
        ConfigError: anything is wrong; one line for each mistake, with its line, flag or variable.
        ValueError: `flags` has a name that is no flag (a mistake of the caller).
    """
    given = {name: value for name, value in flags.items() if value is not None}
    draft = read_yaml(path, environ) if path else read_given(text, environ, given) if text else Draft()
    layers.lay(draft, given, environ, tuple(settings()))
    layers.lay_columns(draft, _texts(given, "column"))
    found = steps.read_steps(draft)
    more = steps.steps_from_flags(draft, _texts(given, "set"), _texts(given, "where"))
    if not given.get("allow_python"):
        layers.refuse_python(draft)
    rules = of_file = steps.read_rules(draft)
    for flag in ("rule", "check"):
        rules += steps.rules_from_flags(draft, _texts(given, flag), rules, f"--{flag}")
    run_rules = runrules.read_run_rules(draft)
    tables = tablestep.read_targets(draft)
    tablestep.check_neighbours(draft, tables)
    as_given = "" if draft.problems else write_given(draft, more, rules[len(of_file) :])
    layers.fill_in(draft, must_exist=reads_source)
    layers.check_uris(draft)
    read = {"transform": (*found, *more), "rules": rules, "run_rules": run_rules, "targets": tables}
    job = _validate(draft, {**draft.data, **read})
    if job is not None and isinstance(job.chunk, AutoChunk) and job.chunk.min_rows > job.chunk.max_rows:
        least, most = job.chunk.min_rows, job.chunk.max_rows
        got, hint = f"{most} with min_rows {least}", "Raise it, or lower min_rows"
        draft.refuse(("chunk", "max_rows"), got, f"a whole number from {least}", hint)
    draft.raise_if_wrong()
    if job is None:  # pragma: no cover - a failed validation always notes a problem
        raise ConfigError("read job: got values that do not fit")
    job._given = _Given(as_given)  # noqa: SLF001 - its own module's
    return job


def _texts(flags: Mapping[str, object], name: str) -> list[str]:
    value = flags.get(name, ())
    return (
        [value] if isinstance(value, str) else [str(item) for item in value] if isinstance(value, list | tuple) else []
    )


def _validate(draft: Draft, data: dict[str, Any]) -> Job | None:
    try:
        return Job.model_validate(data)
    except ValidationError as errors:
        known: dict[Place, Setting] = {one.place: one for one in settings()}
        for error in errors.errors(include_url=False, include_context=False):
            _note(draft, error, known)
    return None


def _note(draft: Draft, error: ErrorDetails, known: Mapping[Place, Setting]) -> None:
    place = tuple(error["loc"])
    if place[:1] in {("chunk",), ("source",)}:  # without the tag of the kind that was tried
        place = (*place[:1], *place[2:])
    if error["type"] == "extra_forbidden":
        draft.refuse_unknown(place, (str(other[-1]) for other in known if other[:-1] == place[:-1]))
        return
    found = next(known[place[:length]] for length in range(len(place), 0, -1) if place[:length] in known)
    if error["type"] == "missing":
        key = spell(found.place)
        ways = [way for way in (*found.flag.split(", "), found.variable, f"{key}: in the job file") if way]
        draft.refuse(place, "nothing", found.expected, f"Give {' or '.join(ways)}")
        return
    value = error["input"]
    got = (
        "an empty list" if value == [] else "text that is not a URI" if place[-1] == "uri" else draft.show(place, value)
    )
    draft.refuse(found.place, got, found.expected)
