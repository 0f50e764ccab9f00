-- The ledger's tables, version by version: each section brings the one before to its own. {schema} is the quoted schema;
-- a literal brace is written twice. A section that is released is never changed: what is new comes as a new one. (Nothing is
-- released yet: until then version 1 is changed itself.)

-- version: 1
-- Runs, chunks, quarantine and results of `etl check`; the balance of a loaded chunk is a constraint of the database.
create table {schema}.schema_version (
    version    integer primary key,
    keyhaul    text not null,
    brought_at timestamptz not null default clock_timestamp()
);
create table {schema}.runs (
    run_id         text primary key,
    job            text not null,
    fingerprint    text not null,
    config         jsonb not null,
    status         text not null check (status in ('running', 'stopped', 'done', 'abandoned')),
    source         text not null,
    target_table   text not null,
    key            text[] not null,
    chunk_rows     bigint not null,
    chunks_planned integer not null,
    estimated_rows bigint not null,
    sittings       integer not null default 1,
    workers        integer not null,
    pid            integer not null,
    host           text not null,
    version        text not null,
    finish         jsonb not null default '[]',
    kind           text not null default 'run' check (kind in ('run', 'replay')),
    replay_of      text,
    fresh_table    text,
    since          text,
    watermark      text,
    run_checks     jsonb,
    checksum       jsonb,
    limits         jsonb not null default '{{}}',
    workers_reason text,
    gathered       jsonb not null default '{{}}',
    emptied        boolean not null default false,
    given          text,
    late_passes    integer,
    late_rows      bigint,
    started_at     timestamptz not null default clock_timestamp(),
    ended_at       timestamptz,
    stop_reason    text
);
create table {schema}.chunks (
    run_id            text not null references {schema}.runs on delete cascade,
    chunk             integer not null,
    kind              text not null check (kind in ('range', 'nulls', 'keys', 'part')),
    lower_bound       text[],
    upper_bound       text[],
    estimated_rows    bigint not null,
    cuts              integer not null default 1,
    status            text not null default 'planned' check (status in ('planned', 'failed', 'done')),
    attempts          integer not null default 0,
    rows_read         bigint not null default 0,
    rows_loaded       bigint not null default 0,
    rows_updated      bigint not null default 0,
    rows_unchanged    bigint not null default 0,
    rows_duplicate    bigint not null default 0,
    rows_filtered     bigint not null default 0,
    rows_quarantined  bigint not null default 0,
    warned            jsonb not null default '{{}}',
    tables            jsonb not null default '[]',
    read_seconds      double precision not null default 0,
    transform_seconds double precision not null default 0,
    stage_seconds     double precision not null default 0,
    load_seconds      double precision not null default 0,
    wait_seconds      double precision not null default 0,
    bytes_read        bigint not null default 0,
    place             text not null default '',
    worker            integer,
    sitting           integer,
    started_at        timestamptz,
    ended_at          timestamptz,
    error             text,
    rows_there        bigint,
    hash_there        numeric,
    hashed_by         text,
    primary key (run_id, chunk),
    constraint balance check (rows_read = rows_loaded + rows_unchanged + rows_duplicate + rows_filtered + rows_quarantined)
);
create table {schema}.quarantine (
    run_id  text not null,
    chunk   integer not null,
    record  bigint not null,
    stage   text not null,
    rules   text[] not null,
    message text not null,
    key     text,
    data    jsonb not null,
    attempts    integer not null default 1,
    tried_by    text,
    resolved_at timestamptz,
    resolved_by text,
    resolved_as text,
    primary key (run_id, chunk, record),
    foreign key (run_id, chunk) references {schema}.chunks on delete cascade
);
create table {schema}.late (
    run_id       text not null,
    chunk        integer not null,
    piece        integer not null,
    text_columns text[] not null,
    data         bytea not null,
    primary key (run_id, chunk, piece),
    foreign key (run_id, chunk) references {schema}.chunks on delete cascade
);
create table {schema}.checks (
    check_run  text not null,
    name       text not null,
    file       text not null,
    source     text not null,
    kind       text not null,
    severity   text not null check (severity in ('error', 'warn')),
    status     text not null check (status in ('passed', 'failed', 'warned')),
    rows       bigint not null,
    failures   bigint not null,
    allowed    text not null,
    message    text not null,
    statistics jsonb not null,
    accepted   boolean not null,
    checked_at timestamptz not null default clock_timestamp(),
    version    text not null,
    primary key (check_run, name)
);
create index checks_accepted on {schema}.checks (source, name, checked_at desc) where accepted;
