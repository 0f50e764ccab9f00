"""What the environment says to libpq must not change values."""

from moving import rows, run_sql


def test_an_encoding_in_the_environment_changes_no_text(etl, databases):
    source, target = databases
    run_sql(
        source,
        "create table public.t (id int primary key, v text, j jsonb, a text[])",
        """insert into public.t values (1, 'é€ü', '{"x": "é"}', '{é}')""",
    )
    for loader in ("copy", "adbc"):
        run_sql(target, "drop table if exists public.t")
        done = etl(
            *("chunked", "--source", source, "--target", target, "--table", "public.t", "--key", "id"),
            *("--loader", loader, "--reader", "adbc", "--fresh"),
            env={"PGCLIENTENCODING": "LATIN1"},
        )
        assert done.returncode == 0, done.stderr
        assert rows(target, "select v, j::text, a::text from public.t") == [("é€ü", '{"x": "é"}', "{é}")]
