"""The transform: a list of frame → frame steps, compiled once per run from Polars SQL expressions.

Every step works on whole columns; a row for which an expression raises (a result that does not fit,
a zero divisor, a bad cast) costs itself: it is isolated by halving.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import polars as pl

from keyhaul.errors import ChunkError, ConfigError, StopRunError, first_line, safe_message
from keyhaul.halving import halve
from keyhaul.model import RECORD
from keyhaul.semantics.arithmetic import in_range
from keyhaul.semantics.comparing import MeaningError
from keyhaul.semantics.meanings import meaning_of
from keyhaul.transform import expressions, meant
from keyhaul.transform.functions import load_function
from keyhaul.transform.lookup import FAILED_SCHEMA, Held, hold
from keyhaul.transform.perchunk import Fetched, fetch_per_chunk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from keyhaul.config.job import Step
    from keyhaul.config.lookupstep import Lookup
    from keyhaul.model import Column
    from keyhaul.semantics.meanings import Meaning
    from keyhaul.transform.lookup import LookupRows, LookupTable
    from keyhaul.transform.meant import Meant

    Apply = Callable[[pl.LazyFrame], pl.LazyFrame]
    LoadLookup = Callable[[Lookup, Mapping[str, pl.DataType]], LookupTable]
    OpenLookup = Callable[[Lookup], LookupRows]

MAX_ISOLATED_RECORDS: Final = 1000
"""Records of one chunk that the transform may fail for before the whole chunk is given up; each costs
about 2·log2(rows) small evaluations (0.3 ms each)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputColumn:
    """A column after the transform.

    Attributes:
        dtype: its type in the frame.
        source: the source column that it is a plain copy of, if any.
        meaning: of its texts, where the type does not say it.
    """

    dtype: pl.DataType
    source: str | None
    meaning: Meaning | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transform:
    """The compiled steps of a job.

    Attributes:
        steps: applied in order to a lazy frame that has `RECORD`; a lookup that quarantines stands among
            them as itself.
        output: name → column after the last step, without `RECORD`, in order.
        needed: source columns that the output or an expression depends on.
        row_wise: no Python step: a failing row can be isolated by evaluating halves.
        used: source columns whose value an expression looks at.
    """

    steps: tuple[Apply | Held | Fetched, ...]
    output: Mapping[str, OutputColumn]
    needed: frozenset[str]
    used: frozenset[str]
    row_wise: bool

    def apply(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Run the steps over one chunk.

        Args:
            frame: source columns and `RECORD`.

        Returns:
            The transformed rows (fewer, when a ``where`` filters), and the records for which a step
            fails or a lookup has no match, as `RECORD`, ``message`` and ``rule``.

        Raises:
            ChunkError: a Python step fails or breaks `RECORD`, or too many records fail.
        """
        if not self.steps:
            return frame, pl.DataFrame(schema=FAILED_SCHEMA)
        if self.row_wise:
            return self._isolate(frame)
        try:
            done, lost = self._run(frame)
        except (ChunkError, StopRunError):
            raise  # of a lookup that is read for each chunk: worth another try, or the end
        except Exception as error:
            msg = f"transform chunk: a Python step raised {type(error).__name__}: {first_line(error)}"
            raise ChunkError(msg) from error
        _check_records(frame, done, lost)
        return done, lost

    def _run(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Return the rows after all steps, and those that a lookup set aside on the way."""
        lazy = frame.lazy()
        lost = [pl.DataFrame(schema=FAILED_SCHEMA)]
        for step in self.steps:
            if isinstance(step, Held | Fetched):
                found, without = step.split(lazy.collect())
                lost.append(without)
                lazy = found.lazy()
            else:
                lazy = step(lazy)
        return lazy.collect(), pl.concat(lost)

    def _isolate(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Run the steps over all records but those that fail alone, which are among the set aside."""
        failures: list[tuple[int, str, str]] = []
        parts: list[tuple[pl.DataFrame, pl.DataFrame]] = []

        def attempt(part: pl.DataFrame) -> Exception | None:
            try:
                parts.append(self._run(part))
            except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
                return error
            return None

        def fail(part: pl.DataFrame, error: Exception) -> None:
            failures.append((part[RECORD][0], safe_message(error), "transform"))
            if len(failures) > MAX_ISOLATED_RECORDS:
                msg = (
                    f"transform chunk: more than {MAX_ISOLATED_RECORDS} records fail, the first with: "
                    f"{failures[0][1]}. Change the expression so that it holds for these rows"
                )
                raise ChunkError(msg) from error
            parts.append(self._run(part.clear()))

        halve(frame, attempt, fail)
        alone = pl.DataFrame(failures, schema=FAILED_SCHEMA, orient="row")
        return pl.concat(done for done, _ in parts), pl.concat([alone, *(lost for _, lost in parts)])


def _check_records(before: pl.DataFrame, after: pl.DataFrame, lost: pl.DataFrame) -> None:
    if RECORD not in after.columns:
        msg = f"transform chunk: a Python step dropped the column {RECORD}. Keep it: it says which record a row is"
        raise ChunkError(msg)
    records = pl.concat([after.select(RECORD), lost.select(RECORD)])[RECORD]
    if records.null_count() or records.n_unique() != records.len() or not records.is_in(before[RECORD].implode()).all():
        msg = f"transform chunk: a Python step repeated or invented values of {RECORD}. One record may give one row"
        raise ChunkError(msg)


# --- compiling -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _State:
    """What is known of the columns while the steps are compiled, one after the other."""

    schema: dict[str, pl.DataType]
    depends: dict[str, frozenset[str]]
    lineage: dict[str, str | None]
    meanings: dict[str, Meaning]
    needed: set[str]
    used: set[str]


def meanings_of(columns: Mapping[str, Column]) -> dict[str, Meaning]:
    """Return what the texts of columns mean, for those whose type in a frame does not say it."""
    return {name: meaning for name, column in columns.items() if (meaning := meaning_of(column)) is not None}


def compile_transform(
    steps: Sequence[Step],
    source: Mapping[str, pl.DataType],
    load: LoadLookup | None = None,
    open_lookup: OpenLookup | None = None,
    meanings: Mapping[str, Meaning] | None = None,
) -> Transform:
    """Compile the steps of a job against the columns of its source.

    Args:
        steps: in order; each names where it stands in the job file.
        source: column → dtype in a frame, in order.
        load: reads a lookup's rows, given its key columns and the types that they should have.
        open_lookup: describes one that is read for each chunk.
        meanings: of the source's columns whose type in a frame does not say what PostgreSQL means by them.

    Raises:
        ConfigError: an expression does not parse, names an unknown column, has types that do not fit, or
            looks at other rows, or a lookup cannot be read or held; all offenders, each with its place.
    """
    state = _State(
        schema=dict(source),
        depends={name: frozenset({name}) for name in source},
        lineage={name: name for name in source},
        meanings=dict(meanings or {}),
        needed=set(),
        used=set(),
    )
    compiled: list[Apply | Held | Fetched] = []
    problems: list[str] = []
    for step in steps:
        try:
            compiled.append(_compile_step(step, load, open_lookup, state))
        except ConfigError as error:
            problems.append(str(error))
            if step.lookup is not None:
                break  # what comes after may use the columns that it would have taken
    if problems:
        raise ConfigError("\n".join(problems))
    for name in state.schema:
        state.needed |= state.depends[name]
    return Transform(
        steps=tuple(compiled),
        output={
            n: OutputColumn(dtype=t, source=state.lineage[n], meaning=state.meanings.get(n))
            for n, t in state.schema.items()
        },
        needed=frozenset(state.needed),
        used=frozenset(state.used),
        row_wise=all(step.kind != "python" for step in steps),
    )


def _compile_step(
    step: Step, load: LoadLookup | None, open_lookup: OpenLookup | None, state: _State
) -> Apply | Held | Fetched:
    if step.kind == "set":
        return _compile_set(step, state)
    if step.kind == "where":
        return _compile_where(step.where, step.at, state)
    if step.kind == "rename":
        return _compile_rename(step.rename, step.at, state)
    if step.kind == "drop":
        return _compile_drop(step.drop, step.at, state)
    if step.lookup is not None:
        return _compile_lookup(step.lookup, load, open_lookup, state)
    return _compile_python(step.python, step.at, state)


def _typed(text: str, at: str, state: _State, taken: int = 0) -> tuple[pl.Expr, Meant, pl.DataType]:
    """Return the expression as it was written, then made exact, with what it needs and the type of its result."""
    written = expressions.parse(text, at, state.schema)
    try:
        digitless = expressions.has_digitless_cast(text)
        found = meant.mean(written, state.schema, state.meanings, taken, digitless=digitless)
        if written.meta.is_column():
            return written, found, state.schema[written.meta.root_names()[0]]
        expression = expressions.exact(found.expr, found.schema)
        return written, replace(found, expr=expression), expressions.type_of(expression, found.schema)
    except MeaningError as error:
        raise ConfigError(f"{at}: check expression {expressions.short(text)}: {error}") from error
    except RecursionError as error:
        raise ConfigError(expressions.too_deep(text, at)) from error
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        told = safe_message(error)
        if "native python" in told:
            told = "it compares a date or time with a text. Cast the text, as in cast(NAME as date)"
        raise ConfigError(f"{at}: check expression {expressions.short(text)}: {told}") from error


@dataclass(slots=True)
class _Assigned:
    """What a ``set`` gives one column."""

    dtype: pl.DataType
    depends: frozenset[str]
    origin: str | None
    meaning: Meaning | None


def _compile_set(step: Step, state: _State) -> Callable[[pl.LazyFrame], pl.LazyFrame]:
    problems: list[str] = []
    computed: dict[str, pl.Expr] = {}
    named: dict[str, pl.Expr] = {}
    results: dict[str, _Assigned] = {}
    for column, text in step.set.items():
        at = step.places.get(column, step.at)
        if column.lower() == RECORD:
            problems.append(f"{at}: set {RECORD}: this name is keyhaul's own. Choose another")
            continue
        try:
            written, found, dtype = _typed(text, at, state, len(computed))
        except ConfigError as error:
            problems.append(str(error))
            continue
        roots = written.meta.root_names()
        copied = roots[0] if written.meta.is_column() else None
        depends = frozenset().union(*(state.depends[name] for name in roots))
        state.needed |= depends  # the step is evaluated, even when its result is dropped later
        if copied is None:
            state.used |= depends
        computed |= found.computed
        looked = {name: state.schema[name] for name in roots} if copied is None and dtype.is_float() else {}
        named[f"_keyhaul_set_{len(named)}"] = in_range(found.expr, looked) if looked else found.expr
        results[column] = _Assigned(dtype, depends, state.lineage[copied] if copied else None, found.meaning)
    if problems:
        raise ConfigError("\n".join(problems))
    temporary = dict(zip(results, named, strict=True))
    for column, assigned in results.items():
        state.schema[column], state.depends[column] = assigned.dtype, assigned.depends
        state.lineage[column] = assigned.origin
        state.meanings.pop(column, None)
        if assigned.meaning is not None:
            state.meanings[column] = assigned.meaning

    def apply(lazy: pl.LazyFrame) -> pl.LazyFrame:
        evaluated = _computed(lazy, computed)
        evaluated = evaluated.with_columns(expression.alias(name) for name, expression in named.items())
        assigned = evaluated.with_columns(pl.col(name).alias(column) for column, name in temporary.items())
        return assigned.drop(*temporary.values(), *computed)

    return apply


def _computed(lazy: pl.LazyFrame, columns: Mapping[str, pl.Expr]) -> pl.LazyFrame:
    """Add the columns that an expression needs; a later one may look at those before."""
    for name, expression in columns.items():
        lazy = lazy.with_columns(expression.alias(name))
    return lazy


def _compile_where(text: str, at: str, state: _State) -> Callable[[pl.LazyFrame], pl.LazyFrame]:
    written, found, dtype = _typed(text, at, state)
    if not isinstance(dtype, pl.Boolean):
        msg = f"{at}: check expression {text!r}: its type is {dtype}, expected true or false"
        raise ConfigError(msg)
    depends = frozenset().union(*(state.depends[name] for name in written.meta.root_names()))
    state.needed |= depends
    state.used |= depends
    expression, computed = found.expr, found.computed

    def apply(lazy: pl.LazyFrame) -> pl.LazyFrame:
        evaluated = _computed(lazy, computed).with_columns(expression.alias("_keyhaul_where"))
        return evaluated.filter(pl.col("_keyhaul_where")).drop("_keyhaul_where", *computed)

    return apply


def _known(names: Iterable[str], at: str, verb: str, state: _State) -> None:
    unknown = [name for name in names if name not in state.schema]
    if unknown:
        msg = f"{at}: {verb} {', '.join(unknown)}: no such column, expected one of {', '.join(state.schema)}"
        raise ConfigError(msg)


def _compile_rename(names: Mapping[str, str], at: str, state: _State) -> Callable[[pl.LazyFrame], pl.LazyFrame]:
    _known(names, at, "rename", state)
    after = [names.get(name, name) for name in state.schema]
    twice = sorted({name for name in after if after.count(name) > 1 or name == RECORD})
    if twice:
        msg = f"{at}: rename: two columns would be called {', '.join(twice)}. Choose other names"
        raise ConfigError(msg)
    for field in ("schema", "depends", "lineage", "meanings"):
        setattr(state, field, {names.get(name, name): value for name, value in getattr(state, field).items()})
    mapping = dict(names)
    return lambda lazy: lazy.rename(mapping, strict=False)  # a column that nobody uses is not read


def _compile_drop(names: Sequence[str], at: str, state: _State) -> Callable[[pl.LazyFrame], pl.LazyFrame]:
    _known(names, at, "drop", state)
    for name in names:
        state.schema.pop(name, None)
        state.meanings.pop(name, None)
    gone = list(dict.fromkeys(names))
    return lambda lazy: lazy.drop(gone, strict=False)


def _compile_lookup(
    lookup: Lookup, load: LoadLookup | None, open_lookup: OpenLookup | None, state: _State
) -> Apply | Held | Fetched:
    _known(lookup.on, lookup.at, "look up by", state)
    taken = sorted({name for name in lookup.take if name in state.schema or name == RECORD})
    if taken:
        msg = f"{lookup.at}: take {', '.join(taken)}: there is such a column already. Take it under a new name"
        raise ConfigError(msg)
    if load is None or (open_lookup is None and lookup.per_chunk):
        raise ValueError(lookup.name)
    keys = {name: state.schema[name] for name in lookup.on}
    held: Held | Fetched
    if lookup.per_chunk and open_lookup is not None:
        rows = open_lookup(lookup)
        held, meanings = fetch_per_chunk(lookup, rows, keys), rows.meanings
    else:
        table = load(lookup, {lookup.on[name]: dtype for name, dtype in keys.items()})
        held, meanings = hold(lookup, table.frame, keys), table.meanings
    depends = frozenset().union(*(state.depends[name] for name in lookup.on))
    state.needed |= depends
    state.used |= depends
    for name, dtype in held.taken.items():
        state.schema[name], state.depends[name], state.lineage[name] = dtype, depends, None
        state.meanings.pop(name, None)
        if (meaning := meanings.get(lookup.take[name])) is not None:
            state.meanings[name] = meaning
    return held if lookup.missing == "quarantine" else held.join


def _compile_python(target: str, at: str, state: _State) -> Callable[[pl.LazyFrame], pl.LazyFrame]:
    function = load_function(target, at)
    everything = frozenset().union(*state.depends.values())
    try:
        empty = pl.DataFrame(schema={RECORD: pl.Int64(), **state.schema}).lazy()
        schema = dict(function(empty).collect_schema())
    except Exception as error:
        msg = f"{at}: call {target} with an empty frame: {type(error).__name__}: {first_line(error)}"
        raise ConfigError(msg) from error
    if RECORD not in schema:
        msg = f"{at}: call {target}: its result has no column {RECORD}. Keep it: it says which record a row is"
        raise ConfigError(msg)
    del schema[RECORD]
    state.needed |= everything
    state.used |= everything
    state.schema = schema
    state.meanings = {}
    state.depends = dict.fromkeys(schema, everything)
    state.lineage = dict.fromkeys(schema)
    return function
