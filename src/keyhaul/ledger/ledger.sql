-- Every statement on the ledger, by name. {schema} is the quoted ledger schema; values are parameters.

-- name: schema_is_there
-- Asked first: "if not exists" wants the right to create schemas also where there is nothing to create.
select exists (select from pg_catalog.pg_namespace where nspname = {wanted});

-- name: create_schema
create schema {schema};

-- name: exists
-- Whether the ledger's tables are there, and whether they say of which version they are. The catalog is asked: to_regclass
-- may go on to say no in a transaction that waits while another session makes them.
select coalesce(bool_or(c.relname = 'runs'), false), coalesce(bool_or(c.relname = 'schema_version'), false)
  from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where n.nspname = {wanted} and c.relname in ('runs', 'schema_version');

-- name: version
-- The newest version that the tables were brought to.
select max(version) from {schema}.schema_version;

-- name: lock_schema
-- Only one process at a time changes the ledger's tables.
select pg_advisory_xact_lock(hashtextextended('keyhaul-ddl', 0));

-- name: brought
-- A version that the tables have from now on, and which keyhaul has made them so.
insert into {schema}.schema_version (version, keyhaul) values ({version}, {keyhaul});

-- name: try_lock
-- Take the job's lock for this session; the other holder, if any, is found by `holder`.
select pg_try_advisory_lock(hashtextextended('keyhaul:' || {schema_name} || ':' || {job}, 0));

-- name: holder
-- The name of the session that holds the job's lock, from `session_name`; a run that still plans has no row yet.
select a.application_name
  from pg_catalog.pg_locks l join pg_catalog.pg_stat_activity a using (pid),
       hashtextextended('keyhaul:' || {schema_name} || ':' || {job}, 0) k
 where l.locktype = 'advisory' and l.granted and l.objsubid = 1
   and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = current_database())
   and l.classid::bigint = (k >> 32) & 4294967295 and l.objid::bigint = k & 4294967295;

-- name: running_as
-- The run of this process, with the host's whole name: a session's name is cut at 63 bytes.
select host, run_id from {schema}.runs
 where job = {job} and status = 'running' and pid = {pid} and starts_with(host, {host}) order by started_at desc limit 1;

-- name: unfinished
-- The run that the same command goes on with; a replay never is.
select run_id, fingerprint, config, target_table, coalesce(fresh_table, '') from {schema}.runs
 where job = {job} and kind = 'run' and status in ('running', 'stopped') order by started_at desc limit 1;

-- name: settle
-- Wait for every transaction that loads a chunk of an unfinished run of this job: a killed process may have left a
-- COMMIT behind that the server is still at.
select run_id from {schema}.runs where job = {job} and status in ('running', 'stopped') order by run_id for update;

-- name: abandon
-- What was unfinished will not be resumed: runs by `--fresh`, replays by the next replay. What waits of them goes.
with gone as (
    update {schema}.runs set status = 'abandoned', ended_at = clock_timestamp()
     where job = {job} and kind = {kind} and status in ('running', 'stopped') returning run_id
)
delete from {schema}.late where run_id in (select run_id from gone);

-- name: fresh_tables
-- The tables that this job's given up runs of mode replace have loaded: quoted names. A run that is done has none.
select fresh_table from {schema}.runs where job = {job} and status = 'abandoned' and fresh_table is not null;

-- name: ended_runs
-- Which of these runs of the job nobody will go on with.
select run_id from {schema}.runs
 where run_id = any({names}::text[]) and job = {job} and status in ('done', 'abandoned');

-- name: insert_run
-- A new run, before its chunks and before the first read.
insert into {schema}.runs (run_id, job, fingerprint, config, status, source, target_table, key, chunk_rows,
                           chunks_planned, estimated_rows, workers, pid, host, version, finish, kind, replay_of,
                           fresh_table, since, watermark, checksum, emptied, given)
values ({run_id}, {job}, {fingerprint}, {config}::jsonb, 'running', {source}, {target_table}, {key}::text[], {chunk_rows},
        {chunks_planned}, {estimated_rows}, {workers}, {pid}, {host}, {version}, {finish}::jsonb, {kind}, {replay_of},
        {fresh_table}, {since}, {watermark}, {checksum}::jsonb, {emptied}, {given});

-- name: last_watermark
-- Where the next incremental run begins: at the newest done run of the same source, column and target.
select r.run_id, r.watermark, r.config,
       (select coalesce(sum(c.rows_loaded), 0)::bigint from {schema}.chunks c join {schema}.runs o using (run_id)
         where o.job = r.job and o.target_table = r.target_table and o.config->'incremental' is not null)
  from {schema}.runs r
 where r.job = {job} and r.kind = 'run' and r.status = 'done' and r.watermark is not null
   and r.target_table = {target_table} and r.config->'source' = {source}::jsonb
   and r.config->'incremental'->>'column' = {column}
 order by r.started_at desc, r.run_id desc limit 1;

-- name: files_of_runs
-- The files that the runs of a job have read for one table, with the rows that they have loaded; in the runs' order.
select r.run_id, r.status, r.config->'contents'->'files',
       (select coalesce(sum(c.rows_loaded + c.rows_unchanged), 0)::bigint from {schema}.chunks c where c.run_id = r.run_id)
  from {schema}.runs r
 where r.job = {job} and r.kind = 'run' and r.status <> 'abandoned' and r.config->'target'->>'table' = {table}
   and r.config->'contents'->'files' is not null
 order by r.started_at, r.run_id;

-- name: replaced_since
-- The newest run that has replaced or emptied the table of an incremental run since the job has last read all rows; what
-- the job has loaded before that is gone. One that has replaced it with all rows of the same source does no harm, if
-- nobody loaded it meanwhile: rows that are there may come again.
select n.run_id, n.fresh_table is not null
  from {schema}.runs r, {schema}.runs n
 where r.run_id = {run_id} and n.target_table = r.target_table and n.kind = 'run'
   and case when n.fresh_table is not null then case when n.status = 'done' then n.ended_at end
            when n.emptied then n.started_at end > coalesce(
       (select max(f.started_at) from {schema}.runs f
         where f.job = r.job and f.kind = 'run' and f.status = 'done' and f.target_table = r.target_table
           and f.watermark is not null and f.since is null), r.started_at)
   and not (n.fresh_table is not null and n.since is null
            and n.config->'source' = r.config->'source' and n.config->'transform' = r.config->'transform'
            and r.config->'targets' is null
            and not exists (select from {schema}.runs x where x.target_table = n.target_table and x.run_id <> n.run_id
                               and x.started_at <= n.ended_at and coalesce(x.ended_at, now()) >= n.started_at))
 order by n.started_at desc, n.run_id desc limit 1;

-- name: since
-- The bound that a resumed run goes on with.
select since from {schema}.runs where run_id = {run_id};

-- name: insert_chunks
-- The plan, from one JSON array.
insert into {schema}.chunks (run_id, chunk, kind, lower_bound, upper_bound, estimated_rows)
select {run_id}, (c->>'number')::int, c->>'kind',
       (select array_agg(v order by n) from jsonb_array_elements_text(nullif(c->'lower', 'null')) with ordinality e(v, n)),
       (select array_agg(v order by n) from jsonb_array_elements_text(nullif(c->'upper', 'null')) with ordinality e(v, n)),
       (c->>'estimated_rows')::bigint
  from jsonb_array_elements({chunks}::jsonb) c;

-- name: resume_run
-- Another sitting of an unfinished run.
update {schema}.runs set status = 'running', sittings = sittings + 1, workers = {workers},
       workers_reason = null, pid = {pid}, host = {host},
       version = {version}, ended_at = null, stop_reason = null
 where run_id = {run_id} returning sittings;

-- name: staffed
-- How many workers there were at last, and why, where the job leaves that to us.
update {schema}.runs set workers = {workers}, workers_reason = {reason} where run_id = {run_id};

-- name: finish_steps
-- What runs when all chunks are loaded: indexes, constraints, sequences.
select finish from {schema}.runs where run_id = {run_id};

-- name: open_chunks
-- The chunks of a run that are not committed, with their bounds.
select chunk, kind, lower_bound, upper_bound, estimated_rows from {schema}.chunks
 where run_id = {run_id} and status <> 'done' order by chunk;

-- name: claim_chunk
-- Hold the run, so that nobody takes it over or gives it up before this transaction has ended, if it is still this
-- sitting's; lock the chunk's row, of a merged chunk those of all its cuts, in their order: a second task with one of them waits
-- here, and then finds it done or gone. The last column is how long it waited, by the server's clock: outside the CTE,
-- since a list beside FOR UPDATE is computed before the lock.
with held as materialized (
    select run_id from {schema}.runs
     where run_id = {run_id} and status = 'running' and sittings = {sitting} for key share
), claimed as materialized (
    select chunk, cuts, status, bytes_read, attempts, {counts}
      from {schema}.chunks where run_id = (select run_id from held) and chunk between {chunk} and {last}
     order by chunk for update
)
select claimed.*, extract(epoch from clock_timestamp() - statement_timestamp())::double precision from claimed;

-- name: holder_of_run
-- Which sitting has the run, and as what it stands there.
select sittings, status from {schema}.runs where run_id = {run_id};

-- name: covering
-- Whether a committed chunk has any of these cuts.
select exists (select from {schema}.chunks where run_id = {run_id} and status = 'done'
                  and chunk <= {last} and chunk + cuts > {chunk});

-- name: merge_chunks
-- In the transaction that loads a merged chunk: its first cut's row takes the whole range, the others cease to be.
with gone as (
    delete from {schema}.chunks
     where run_id = {run_id} and chunk > {chunk} and chunk <= {last} and status <> 'done'
    returning chunk, upper_bound, estimated_rows
)
update {schema}.chunks c
   set upper_bound = (select g.upper_bound from gone g where g.chunk = {last}),
       estimated_rows = c.estimated_rows + (select coalesce(sum(g.estimated_rows), 0) from gone g),
       cuts = 1 + (select count(*) from gone)
 where c.run_id = {run_id} and c.chunk = {chunk} and c.status <> 'done'
returning c.cuts;

-- name: chunk_done
-- The record of a loaded chunk, in the transaction that loaded it; what came before the load began before it.
update {schema}.chunks set status = 'done', attempts = {attempts}, {counted}, warned = {warned}::jsonb, tables = {tables}::jsonb, read_seconds = {read_seconds},
       transform_seconds = {transform_seconds}, stage_seconds = {stage_seconds},
       load_seconds = greatest(extract(epoch from clock_timestamp() - transaction_timestamp()) - {lock_seconds}, 0),
       wait_seconds = {wait_seconds}, bytes_read = {bytes_read}, place = {place},
       worker = {worker}, sitting = {sitting}, started_at = transaction_timestamp() - make_interval(secs => {elapsed_seconds}),
       ended_at = clock_timestamp(), error = null
 where run_id = {run_id} and chunk = {chunk} and status <> 'done'
returning load_seconds;

-- name: store_checksum
-- What the target has in the chunk's part, in the transaction that loaded the chunk: nobody else's row of this run
-- lies there.
update {schema}.chunks set rows_there = s.rows, hash_there = s.hash, hashed_by = {tag}
  from ({state}) s where run_id = {run_id} and chunk = {chunk}
returning chunk;

-- name: chunks_of_records
-- The chunks with a checksum to which unresolved records belong, locked in their order.
select chunk, kind, lower_bound, upper_bound from {schema}.chunks
 where run_id = {run_id} and hashed_by = {tag} and chunk in (
       select chunk from {schema}.quarantine
        where run_id = {run_id} and key = any({keys}::text[]) and resolved_at is null)
 order by chunk for update;

-- name: move_checksum
-- A checksum after rows of a replay came into its part: the difference is added, so that one that was wrong stays so.
update {schema}.chunks set rows_there = rows_there + s.rows - {rows}, hash_there = hash_there + s.hash - {hash}::numeric
  from ({state}) s where run_id = {run_id} and chunk = {chunk};

-- name: run_named
-- A run by its name, or the newest of a job (of any, for null) that is no replay.
select r.run_id, r.job, r.replay_of from {schema}.runs r
 where case when {run} = 'last' then r.job = coalesce({job}, r.job) and r.replay_of is null
            else r.run_id = {run} end
 order by r.started_at desc, r.run_id desc limit 1;

-- name: checksum
-- What is hashed of the rows of a run; null when its chunks have no checksums.
select checksum from {schema}.runs where run_id = {run_id};

-- name: checksums
-- Each chunk of a run with its bounds, whether it is loaded, and what it had then.
select chunk, kind, lower_bound, upper_bound, estimated_rows, status = 'done', rows_there, hash_there::text,
       hashed_by, {tag}
  from {schema}.chunks where run_id = {run_id} order by chunk;

-- name: loaded_since
-- The newest run or replay that wrote into the table after the first checksum of a run, other than those of its own
-- replays that have kept its checksums true.
select r.run_id from {schema}.chunks c join {schema}.runs r using (run_id)
 where r.run_id <> {run_id} and (r.replay_of is distinct from {run_id} or r.checksum is null)
   and c.status = 'done' and c.rows_loaded > 0
   and c.ended_at > (select min(f.ended_at) from {schema}.chunks f where f.run_id = {run_id} and f.status = 'done')
   and (r.target_table = {target_table}
        or exists (select from jsonb_array_elements(c.tables) t where t->>'table' = {target_table}))
 order by c.ended_at desc limit 1;

-- name: chunk_failed
-- The record of a chunk that was given up, of a merged one in the rows of all its cuts, which stay open; a committed
-- chunk is never overwritten.
with locked as materialized (
    select chunk from {schema}.chunks
     where run_id = {run_id} and chunk between {chunk} and {last} and status <> 'done' order by chunk for update
)
update {schema}.chunks set status = 'failed', attempts = attempts + {attempts}, worker = {worker}, sitting = {sitting},
       ended_at = clock_timestamp(), error = {error}
 where run_id = {run_id} and chunk in (select chunk from locked) and status <> 'done';

-- name: insert_quarantine
-- From the session's temporary table of text columns.
insert into {schema}.quarantine (run_id, chunk, record, stage, rules, message, key, data)
select {run_id}, {chunk}, record, stage, rules, message, key, data::jsonb from pg_temp._keyhaul_quarantine;

-- name: count_quarantine
-- Counted by SQL: what this chunk has in quarantine now.
select count(*) from {schema}.quarantine where run_id = {run_id} and chunk = {chunk};

-- name: hold_run
-- Hold the run until the transaction's end, if it is still this sitting's.
select run_id from {schema}.runs
 where run_id = {run_id} and status = 'running' and sittings = {sitting} for key share;

-- name: has_late
-- Whether rows of the run wait for rows of later chunks.
select exists (select from {schema}.late where run_id = {run_id});

-- name: late_pieces
-- What waits: the pieces of chunks of which a record still lacks one of these references.
select c.chunk, c.kind, c.lower_bound, c.upper_bound, c.estimated_rows, l.piece, l.text_columns
  from {schema}.late l join {schema}.chunks c using (run_id, chunk)
 where l.run_id = {run_id} and exists (
       select from {schema}.quarantine q where q.run_id = l.run_id and q.chunk = l.chunk and q.resolved_at is null
          and q.stage = 'load' and q.rules && {names}::text[])
 order by l.chunk, l.piece;

-- name: late_data
-- The rows of one piece.
select data from {schema}.late where run_id = {run_id} and chunk = {chunk} and piece = {piece};

-- name: late_records
-- The records of a chunk that still lack one of these references.
select record from {schema}.quarantine
 where run_id = {run_id} and chunk = {chunk} and resolved_at is null and stage = 'load' and rules && {names}::text[];

-- name: late_together
-- Take all that is in the session's temporary table out of the quarantine and into the balance of its chunks; returns how
-- many records were in the quarantine, and how many rows the table has.
with gone as (
    delete from {schema}.quarantine q using pg_temp._keyhaul_late w
     where q.run_id = {run_id} and q.chunk = (w._keyhaul_record % {chunks})::int and q.record = w._keyhaul_record / {chunks}
       and q.resolved_at is null
    returning q.chunk
), counted as (
    select chunk, count(*) as n from gone group by chunk
), moved as (
    update {schema}.chunks c set rows_quarantined = c.rows_quarantined - n.n, rows_loaded = c.rows_loaded + n.n
      from counted n where c.run_id = {run_id} and c.chunk = n.chunk
    returning n.n
), told as (
    update {schema}.runs set late_passes = coalesce(late_passes, 0) + 1, late_rows = coalesce(late_rows, 0) + t.n
      from (select sum(n)::bigint as n from moved) t where run_id = {run_id} and t.n > 0
)
select coalesce(sum(n), 0)::bigint, (select count(*) from pg_temp._keyhaul_late) from moved;

-- name: late_alone
-- The same for some records of one chunk, with what became of their rows.
with gone as (
    delete from {schema}.quarantine
     where run_id = {run_id} and chunk = {chunk} and record = any({records}::bigint[]) and resolved_at is null
    returning record
), told as (
    update {schema}.runs set late_passes = coalesce(late_passes, 0) + {first},
           late_rows = coalesce(late_rows, 0) + (select count(*) from gone) where run_id = {run_id}
)
update {schema}.chunks
   set rows_quarantined = rows_quarantined - (select count(*) from gone), rows_loaded = rows_loaded + {loaded},
       rows_updated = rows_updated + {updated}, rows_unchanged = rows_unchanged + {unchanged},
       rows_duplicate = rows_duplicate + {duplicate}, tables = tables || {tables}::jsonb
 where run_id = {run_id} and chunk = {chunk}
returning (select count(*) from gone);

-- name: late_refused
-- What the target refuses of them now for another reason.
update {schema}.quarantine q set stage = r.stage, rules = r.rules, message = r.message
  from jsonb_to_recordset({refused}::jsonb) as r(record bigint, stage text, rules text[], message text)
 where q.run_id = {run_id} and q.chunk = {chunk} and q.record = r.record and q.resolved_at is null;

-- name: late_told
-- In how many passes rows came that had waited, and how many; null when none had.
select late_passes, late_rows from {schema}.runs where run_id = {run_id};

-- name: late_over
-- What was put down is of no use any more.
delete from {schema}.late where run_id = {run_id};

-- name: older_unresolved
-- Older runs of the run's job and table that have unresolved records (that broke the rule), the oldest first, with their
-- number and the rows read. Not those that were given up or whose fresh table has taken nobody's place, nor those before
-- a run that is done and has read all rows anew, or replaced the table.
select o.run_id, o.records, o.rows_read
  from {schema}.runs r
 cross join lateral (
    select b.*, (select coalesce(sum(c.rows_read), 0)::bigint from {schema}.chunks c where c.run_id = b.run_id) as rows_read,
           (select count(*) from {schema}.quarantine q
             where q.run_id = b.run_id and q.resolved_at is null
               and ({rule}::text is null
                    or {rule} = any(case when cardinality(q.rules) = 0 then array[q.stage] else q.rules end))) as records
      from {schema}.runs b
     where b.job = r.job and b.target_table = r.target_table and b.kind = 'run' and b.status <> 'abandoned'
       and (b.fresh_table is null or b.status = 'done') and (b.started_at, b.run_id) < (r.started_at, r.run_id)
       and not exists (
           select from {schema}.runs n
            where n.target_table = b.target_table and n.kind = 'run' and n.status = 'done'
              and (n.started_at, n.run_id) > (b.started_at, b.run_id)
              and (n.fresh_table is not null or n.job = b.job and n.since is null))
       and not exists (select from {schema}.runs n where n.target_table = b.target_table and n.emptied
                          and (n.started_at, n.run_id) > (b.started_at, b.run_id))
 ) o
 where r.run_id = {run_id} and o.records > 0
 order by o.started_at, o.run_id;

-- name: replay_run
-- The run whose records are sent again: by its name, or the job's newest. `lost`: they belong to a fresh table that
-- has not taken its place, to one whose place another has taken since, or to one that was emptied since; `newer` is the
-- run of the job that did that. `given_up_for`: the run of the job that began anew with --fresh. Verify and a run that
-- goes on ask, too.
select r.run_id, r.job, r.kind, coalesce(r.replay_of, ''), r.key, r.target_table, r.config,
       (select coalesce(sum(c.rows_read), 0)::bigint from {schema}.chunks c where c.run_id = r.run_id),
       case when r.fresh_table is not null and r.status <> 'done' then 'it has not replaced its target table'
            when o.run_id is null then ''
            else 'run ' || o.run_id || case when o.fresh_table is null then ' has emptied' else ' has replaced' end
                 || ' its target table since' end,
       coalesce(case when o.job = r.job then o.run_id end, ''), coalesce(g.run_id, '')
  from {schema}.runs r
  left join lateral (
       select n.run_id, n.job, n.fresh_table from {schema}.runs n
        where n.target_table = r.target_table and n.run_id <> r.run_id
          and (n.fresh_table is not null and n.status = 'done' and n.ended_at > r.started_at
               or n.emptied and n.started_at > r.started_at)
        order by n.started_at desc limit 1) o on true
  left join lateral (
       select n.run_id from {schema}.runs n
        where r.status = 'abandoned' and n.job = r.job and n.kind = 'run' and n.started_at > r.started_at
          and n.target_table = r.target_table
          and (n.config->'source') - 'query' is not distinct from (r.config->'source') - 'query'
        order by n.status = 'abandoned', n.started_at limit 1) g on true
 where case when {run} = 'last' then r.job = {job} and r.kind = 'run' else r.run_id = {run} end
 order by r.started_at desc, r.run_id desc limit 1;

-- name: replay_keys
-- The keys of a run's unresolved records, each once, in the order of the source.
select key from {schema}.quarantine
 where run_id = {run_id} and resolved_at is null and key is not null
   and ({rule}::text is null or {rule} = any(case when cardinality(rules) = 0 then array[stage] else rules end))
 group by key order by min(chunk), min(record);

-- name: replay_rules
-- What a run's records broke, resolved or not; the stage where no rule is named.
select distinct reason from {schema}.quarantine,
       unnest(case when cardinality(rules) = 0 then array[stage] else rules end) reason
 where run_id = {run_id} order by 1;

-- name: replay_left
-- Unresolved records, and those of them without a key.
select count(*), count(*) filter (where key is null) from {schema}.quarantine
 where run_id = {run_id} and resolved_at is null
   and ({rule}::text is null or {rule} = any(case when cardinality(rules) = 0 then array[stage] else rules end));

-- name: replay_chosen
-- Of the records with these keys: those that are unresolved, and those of them that do not break the rule any more.
select count(*), count(*) filter (where not {rule} = any(case when cardinality(rules) = 0 then array[stage] else rules end))
  from {schema}.quarantine
 where run_id = {run_id} and key = any({keys}::text[]) and resolved_at is null;

-- name: replay_breaks
-- What the latter break now.
select distinct reason
  from {schema}.quarantine, lateral (select case when cardinality(rules) = 0 then array[stage] else rules end) b(broken),
       unnest(broken) reason
 where run_id = {run_id} and key = any({keys}::text[]) and resolved_at is null and not {rule} = any(broken) order by 1;

-- name: reopen_records
-- Records that replays have closed in one of these ways become unresolved again; the message is that from before.
update {schema}.quarantine
   set resolved_at = null, resolved_by = null, resolved_as = null,
       message = regexp_replace(message, '^[^(]* \(before: (.*)\)$', '\1')
 where run_id = {run_id} and resolved_as = any({states}::text[])
   and ({rule}::text is null or {rule} = any(case when cardinality(rules) = 0 then array[stage] else rules end));

-- name: closed_records
-- How many records a replay has closed without loading them, and in which way.
select resolved_as, count(*) from {schema}.quarantine
 where run_id = {run_id} and resolved_by = {replay_id} and resolved_as <> 'loaded' group by 1 order by 2 desc, 1;

-- name: verify_chunks
-- All chunks of a run with their bounds, and whether they are loaded.
select chunk, kind, lower_bound, upper_bound, estimated_rows, status = 'done' from {schema}.chunks
 where run_id = {run_id} order by chunk;

-- name: verify_rejected
-- The source's rows of a chunk that the target did not take and that no replay has resolved.
select data::text from {schema}.quarantine
 where run_id = {run_id} and chunk = {chunk} and stage in ('load', 'type') and resolved_at is null;

-- name: verify_doubtful
-- The chunks that have such rows.
select distinct chunk from {schema}.quarantine
 where run_id = {run_id} and stage in ('load', 'type') and resolved_at is null;

-- name: verify_replays
-- The replays that have tried a run's records and are done, the newest first, with what they were asked to do.
-- One of another run of the job has resolved this run's records of the same keys.
select r.run_id, r.config from {schema}.runs r
 where r.status = 'done'
   and (r.replay_of = {run_id}
        or r.replay_of is not null
           and r.run_id in (select q.resolved_by from {schema}.quarantine q where q.run_id = {run_id}))
 order by r.started_at desc, r.run_id desc;

-- name: job_of_run
-- What a run was asked to do, or the newest replay of it that is done, for a command that names the run alone.
select r.job, d.config, coalesce(d.given, '')
  from {schema}.runs r
 cross join lateral (
    select n.config, n.given from {schema}.runs n
     where n.run_id = r.run_id or n.replay_of = r.run_id and n.status = 'done'
     order by n.run_id <> r.run_id desc, n.started_at desc, n.run_id desc limit 1) d
 where r.run_id = {run_id};

-- name: resolve_elsewhere
-- Records of other runs that the row of a record which this replay has resolved just now answers, too: those of the same
-- job, key and target table, and of the source of the run or the replay (a query may be mended in between). Left out are
-- keys of which the run still has an unresolved record, and runs whose fresh table waits to take the target's place: it
-- lacks what came now. A row that is loaded answers those, too, that were closed without it.
update {schema}.quarantine q
   set resolved_at = clock_timestamp(), resolved_by = {replay_id}, resolved_as = m.state,
       message = 'resolved by replay ' || {replay_id} || ' of run ' || {run_id} || ' (before: ' || q.message || ')'
  from {schema}.runs mine join {schema}.runs replay on replay.run_id = {replay_id}
  join {schema}.runs other
    on other.run_id <> mine.run_id and other.job = mine.job and other.target_table = mine.target_table
   and other.key = mine.key and (other.fresh_table is null or other.status = 'done')
   and other.config->'source' in (mine.config->'source', replay.config->'source')
 cross join (select key, case when bool_or(coalesce(resolved_as, 'loaded') = 'loaded') then 'loaded' else min(resolved_as) end as state
               from {schema}.quarantine where run_id = {run_id} and key = any({keys}::text[])
              group by key having bool_and(resolved_at is not null)) m
 where mine.run_id = {run_id} and q.run_id = other.run_id and q.key = m.key
   and (q.resolved_at is null or m.state = 'loaded' and q.resolved_as <> 'loaded');

-- name: open_records
-- Which of these keys have an unresolved record.
select key from {schema}.quarantine
 where run_id = {run_id} and key = any({keys}::text[]) and resolved_at is null;

-- name: lock_records
-- The same, locked: whoever resolves one of them at this moment commits first, and it is not returned any more.
select key from {schema}.quarantine
 where run_id = {run_id} and key = any({keys}::text[]) and resolved_at is null order by chunk, record for update;

-- name: records_failed_again
-- From the session's temporary table: the new reasons and the row as it is now; the record stays unresolved. Of a key
-- that several records have, a row goes to the one with its values, else to the next in order.
with failed as (
    select t.*, case when key = any({crowded}::text[]) then data::jsonb end as body from pg_temp._keyhaul_quarantine t
), unresolved as (
    select chunk, record, key, case when key = any({crowded}::text[]) then data end as body from {schema}.quarantine
     where run_id = {run_id} and resolved_at is null and key in (select key from failed)
), f as (
    select *, row_number() over (partition by key, body order by record) as nth from failed
), u as (
    select *, row_number() over (partition by key, body order by chunk, record) as nth from unresolved
), rows_placed as (
    select f.*, row_number() over (partition by f.key order by u.key is null, f.body, f.nth) as place
      from f left join u on (u.key, u.body, u.nth) = (f.key, f.body, f.nth)
), records_placed as (
    select u.*, row_number() over (partition by u.key order by f.key is null, u.body, u.nth) as place
      from u left join f on (u.key, u.body, u.nth) = (f.key, f.body, f.nth)
)
update {schema}.quarantine q
   set stage = t.stage, rules = t.rules, message = t.message, data = t.data::jsonb, attempts = q.attempts + 1,
       tried_by = {replay_id}
  from records_placed o join rows_placed t on (o.key, o.place) = (t.key, t.place)
 where q.run_id = {run_id} and q.chunk = o.chunk and q.record = o.record;

-- name: resolve_records
-- Records that have their place now, or none any more; `why` is put before the message unless it is empty. Those that
-- failed in this replay stay.
update {schema}.quarantine
   set resolved_at = clock_timestamp(), resolved_by = {replay_id}, resolved_as = {state}, tried_by = {replay_id},
       attempts = attempts + 1,
       message = case when {why} = '' then message else {why} || ' (before: ' || message || ')' end
 where run_id = {run_id} and key = any({keys}::text[]) and resolved_at is null
   and tried_by is distinct from {replay_id};

-- name: totals
-- The run's balance, summed from its committed chunks.
select count(*) filter (where c.status = 'done'), count(*) filter (where c.status = 'failed'), count(*), {sums}
  from {schema}.chunks c where c.run_id = {run_id};

-- name: count_cuts
-- How many cuts the plan has; merging chunks does not change it.
select coalesce(sum(cuts), 0)::bigint from {schema}.chunks where run_id = {run_id};

-- name: range_rows_read
-- Rows read by the chunks with a key range, to compare with what an exact plan expected.
select coalesce(sum(rows_read), 0)::bigint from {schema}.chunks where run_id = {run_id} and kind = 'range';

-- name: sum_warned
-- Rows that failed a rule with `on_fail: warn`, by rule.
select w.key, sum(w.value::bigint)::bigint from {schema}.chunks c, jsonb_each_text(c.warned) w
 where c.run_id = {run_id} group by 1 order by 2 desc, 1;

-- name: sum_tables
-- Rows of the tables of a job with several, in the order of the job.
select t->>'table', sum((t->>'inserted')::bigint)::bigint, sum((t->>'updated')::bigint)::bigint,
       sum((t->>'unchanged')::bigint)::bigint, sum((t->>'duplicate')::bigint)::bigint
  from {schema}.chunks c, jsonb_array_elements(c.tables) with ordinality as e(t, n)
 where c.run_id = {run_id} group by 1 order by min(n), 1;

-- name: inserted_into
-- How many rows the runs of this ledger have put into a table since one of them emptied or replaced it.
select coalesce(sum(case when r.target_table = {target_table} then c.rows_loaded - c.rows_updated
                         else (select coalesce(sum((t->>'inserted')::bigint), 0) from jsonb_array_elements(c.tables) t
                                where t->>'table' = {target_table}) end), 0)::bigint
  from {schema}.chunks c join {schema}.runs r using (run_id)
 where c.status = 'done' and (r.fresh_table is null or r.status = 'done')
   and r.started_at >= coalesce((select max(e.started_at) from {schema}.runs e where e.target_table = {target_table}
                                    and (e.emptied or e.fresh_table is not null and e.status = 'done')), '-infinity');

-- name: has_loaded
-- Whether a run of the job has this target.
select exists (select from {schema}.runs where job = {job} and target_table = {target_table});

-- name: loaded_tables
-- Which tables of a job with several got rows by its done runs.
select distinct t->>'table' from {schema}.chunks c join {schema}.runs r using (run_id),
       jsonb_array_elements(c.tables) t
 where r.target_table = {target_table} and r.status = 'done' and (t->>'inserted')::bigint > 0 order by 1;

-- name: quarantined_by_rule
-- Records by reason; a record that failed two rules counts for both. Of a replay, those that failed in it.
select r, count(*) from {schema}.quarantine q, unnest(q.rules) r
 where case when {replay} then q.tried_by = {run_id} and q.resolved_at is null else q.run_id = {run_id} end
 group by 1 order by 2 desc, 1;

-- name: failed_chunks
-- What was given up, and why.
select chunk, attempts, coalesce(error, '') from {schema}.chunks where run_id = {run_id} and status = 'failed' order by chunk;

-- name: run_checked
-- What became of the rules across the run.
update {schema}.runs set run_checks = {checks}::jsonb where run_id = {run_id};

-- name: gathered
-- How far a run with a dedup across chunks has come before it loads any; for who watches it.
update {schema}.runs set gathered = jsonb_build_object('chunks', {chunks}::bigint, 'rows', {rows}::bigint) where run_id = {run_id};

-- name: limited
-- What the limits of a sitting did, its waits added to those of the sittings before.
update {schema}.runs r set limits = r.limits || (
    select coalesce(jsonb_object_agg(n.key, n.value || jsonb_build_object('waited_seconds',
               (n.value->>'waited_seconds')::double precision
               + coalesce((r.limits->n.key->>'waited_seconds')::double precision, 0))), '{{}}')
      from jsonb_each({limits}::jsonb) n)
 where run_id = {run_id};

-- name: end_run
-- The run's last word: done when no chunk is left, else stopped and resumable.
update {schema}.runs set status = {status}, ended_at = clock_timestamp(), stop_reason = {stop_reason} where run_id = {run_id}
returning run_id;

-- name: status
-- What the ledger says of a run, when the answer to a COMMIT was lost.
select status from {schema}.runs where run_id = {run_id};

-- name: insert_checks
-- One execution's results, from one JSON array.
insert into {schema}.checks (check_run, name, file, source, kind, severity, status, rows, failures, allowed, message,
                             statistics, accepted, version)
select {check_run}, v->>'name', {file}, {source}, v->>'kind', v->>'severity', v->>'status', (v->>'rows')::bigint,
       (v->>'failures')::bigint, v->>'allowed', v->>'message', v->'statistics', (v->>'accepted')::boolean, {version}
  from jsonb_array_elements({verdicts}::jsonb) v;

-- name: accepted_checks
-- What each check of a source was last accepted with.
select distinct on (name) name, statistics from {schema}.checks
 where source = {source} and kind = 'drift' and accepted order by name, checked_at desc;

-- name: kept_checks
-- Every result; those of one execution have one moment.
select check_run, name, file, source, kind, severity, status, rows, failures, allowed, message, statistics, accepted,
       min(checked_at) over (partition by check_run) as checked_at, version
  from {schema}.checks;

-- ---- look back ----

-- name: run_names
-- The names of all runs, the newest first.
select run_id from {schema}.runs order by started_at desc, run_id desc;

-- name: runs
-- The newest runs, or one run by its name, with what their chunks sum to. A run is alive while a session holds
-- its job's advisory lock; of several rows that say running, only the newest can be the one that holds it.
-- Seconds are those of the sittings, without the time between them. Cuts that were merged into another's chunk are no
-- chunks of the plan any more. All columns of the run come along; of two columns of one name the later is meant.
with picked as (
    select r.*
    from {schema}.runs r
    where %(run_id)s::text is null or r.run_id = %(run_id)s::text
    order by r.started_at desc, r.run_id desc
    limit %(limit)s::bigint
)
select
    p.*, c.*, p.chunks_planned - c.merged as chunks_planned,
    coalesce(p.config->>'chunk' = 'auto', false) as auto,
    p.status = 'running'
        and not exists (
            select from {schema}.runs n
            where n.job = p.job and n.status = 'running' and (n.started_at, n.run_id) > (p.started_at, p.run_id)
        )
        and exists (
            select
            from pg_catalog.pg_locks l, hashtextextended('keyhaul:' || %(schema)s::text || ':' || p.job, 0) k
            where l.locktype = 'advisory' and l.granted and l.objsubid = 1
              and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = current_database())
              and l.classid::bigint = (k >> 32) & 4294967295
              and l.objid::bigint = k & 4294967295
        ) as alive,
    p.config::text as config,
    p.config->'incremental'->>'column' as incremental,
    coalesce(p.run_checks, '[]') as run_checks,
    q.rows_resolved, q.rows_unresolved,
    case
        when p.sittings = 1 and p.ended_at is not null then extract(epoch from p.ended_at - p.started_at)
        else (
            select coalesce(sum(s.seconds), 0)
            from (
                select extract(epoch from max(x.ended_at) - min(x.started_at)) as seconds
                from {schema}.chunks x
                where x.run_id = p.run_id and x.status <> 'planned'
                group by x.sitting
            ) s
        )
    end::double precision as seconds
from picked p
cross join lateral (
    select
        coalesce(sum(case when p.config->>'chunk' = 'auto' then c.cuts - 1 end), 0) as merged,
        count(*) filter (where c.status = 'done') as chunks_done,
        count(*) filter (where c.status = 'failed') as chunks_failed,
        count(*) filter (where c.attempts > 1) as chunks_retried,
        {sums}
    from {schema}.chunks c
    where c.run_id = p.run_id
) c
cross join lateral (
    select count(*) filter (where q.resolved_at is not null) as rows_resolved,
           count(*) filter (where q.resolved_at is null) as rows_unresolved
    from {schema}.quarantine q
    where q.run_id = p.run_id
) q
order by p.started_at desc, p.run_id desc;

-- name: run_chunks
-- The chunks of a run in their order: all if they are at most chunk_limit (NULL: always), else the slowest ten,
-- the failed and the retried.
select run_id, chunk, kind, lower_bound, upper_bound, cuts, estimated_rows, status, attempts, {counts}, warned, bytes_read, place,
       {seconds}, worker, sitting, started_at, ended_at, error
from (
    select c.*,
           count(*) over () as total,
           row_number() over (
               order by c.status = 'planned',
                        c.read_seconds + c.transform_seconds + c.stage_seconds + c.load_seconds desc, c.chunk
           ) as slowness
    from {schema}.chunks c
    where c.run_id = %(run_id)s
) c
where %(chunk_limit)s::bigint is null or total <= %(chunk_limit)s::bigint
   or status = 'failed' or attempts > 1 or (slowness <= 10 and status <> 'planned')
order by chunk;

-- name: run_sessions
-- How many sessions a run has in this database, and its age in seconds by the server's clock.
select (select count(*) from pg_catalog.pg_stat_activity a
         where a.datname = current_database() and a.pid <> pg_backend_pid()
           and starts_with(a.application_name, 'keyhaul ' || r.run_id || ' ')),
       extract(epoch from clock_timestamp() - r.started_at)::double precision
from {schema}.runs r where r.run_id = %(run_id)s;

-- name: quarantine_frame
-- The records of a run (of a replay: those it tried), with the columns of `keyhaul.quarantine`.
select run_id, chunk, record, stage, rules, message, key, data::text as data, attempts, tried_by, resolved_at, resolved_by
from {schema}.quarantine
where run_id = %(run_id)s or tried_by = %(run_id)s
order by chunk, record
limit %(row_limit)s::bigint;

-- name: quarantine_examples
-- The first records of a run for each reason, as `quarantine_reasons` has them; key and data only if `show_values`.
select reason, chunk, record, stage, message,
       case when %(show_values)s then key end as key, case when %(show_values)s then data::text end as data,
       resolved_by
from (
    select q.*, reason, row_number() over (partition by reason order by q.chunk, q.record) as place
    from {schema}.quarantine q,
         unnest(case when cardinality(q.rules) = 0 then array[q.stage] else q.rules end) reason
    where (q.run_id = %(run_id)s or q.tried_by = %(run_id)s) and (%(resolved)s or q.resolved_at is null)
) numbered
where place <= %(row_limit)s
order by reason, place;

-- name: quarantine_reasons
-- Rejected records of a run by rule (by stage where no rule is named), most first. A record that failed two
-- rules counts under both.
select reason, count(*) as records
from {schema}.quarantine q,
     unnest(case when cardinality(q.rules) = 0 then array[q.stage] else q.rules end) reason
where (q.run_id = %(run_id)s or q.tried_by = %(run_id)s) and (%(resolved)s or q.resolved_at is null)
group by reason
order by records desc, reason;

-- name: quarantine_rows
-- The rejected records of a run (of a replay: those it tried) in the order of the source; all of them if row_limit
-- is NULL, the resolved ones too if `resolved`.
select run_id, chunk, record, stage, rules, message, key, data::text as data, attempts, resolved_by
from {schema}.quarantine
where (run_id = %(run_id)s or tried_by = %(run_id)s) and (%(resolved)s or resolved_at is null)
order by chunk, record
limit %(row_limit)s::bigint;

-- name: quarantine_fate
-- Of a run without unresolved records: the run that it is a replay of, how many records it had quarantined, how many of
-- those that it quarantined or tried are resolved, and the newest replay of the same run after it.
select r.replay_of,
       (select coalesce(sum(c.rows_quarantined), 0)::bigint from {schema}.chunks c
         where c.run_id = r.run_id and c.status = 'done'),
       (select count(*) from {schema}.quarantine q
         where (q.run_id = r.run_id or q.tried_by = r.run_id) and q.resolved_at is not null),
       (select n.run_id from {schema}.runs n
         where n.replay_of = r.replay_of
           and (n.started_at, n.run_id) > (r.started_at, r.run_id) order by n.started_at desc, n.run_id desc limit 1)
from {schema}.runs r where r.run_id = %(run_id)s;

-- name: quarantine_size
-- How many records `quarantine_rows` has.
select count(*) from {schema}.quarantine
where (run_id = %(run_id)s or tried_by = %(run_id)s) and (%(resolved)s or resolved_at is null);
