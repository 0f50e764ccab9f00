# List the recipes.
default:
    @just --list

# Make .venv from the pins, if it is missing or out of date.
setup:
    python3 .ci/bootstrap python -c "import keyhaul"

# Move the bundled flights between two databases of the embedded PostgreSQL.
run *args:
    python3 .ci/bootstrap etl chunked --key id --chunk 50000 {{ args }}

# Run all tests, or those that the arguments select.
test *args:
    python3 .ci/bootstrap pytest {{ args }}

# Run all tests, also those of long lists of which the others take each second to fourth, and three long files. Half an hour or more.
thorough *args:
    KEYHAUL_THOROUGH=1 KEYHAUL_PATIENCE=60 python3 .ci/bootstrap pytest {{ args }}

# Kill runs 300 times at random, fail at every named point in every way, and try every network and server fault three
# times; prints what it has tried as a table. Hours.
soak *args:
    KEYHAUL_THOROUGH=1 KEYHAUL_SOAK_TABLE=1 KEYHAUL_SOAK_KILLS=300 KEYHAUL_FAULT_ALL=1 KEYHAUL_MATRIX_ROUNDS=3 KEYHAUL_MATRIX_SLACK=1 \
        KEYHAUL_PATIENCE=60 python3 .ci/bootstrap pytest -s --timeout=0 \
        tests/acceptance/test_soak.py tests/acceptance/test_faults.py tests/acceptance/test_networks.py \
        tests/acceptance/test_outages.py tests/acceptance/test_servers.py {{ args }}

# Compare keyhaul with a raw COPY and, with --peers, with other programs; --docs writes docs/performance.md (--help).
bench *args:
    PYTHONPATH=tests python3 .ci/bootstrap python -m benchmarks {{ args }}

# Time 15 checks beside a plain count on the same 5 million rows, in PostgreSQL and Parquet; prints the table (--help).
bench-check *args:
    PYTHONPATH=tests python3 .ci/bootstrap python -m benchmarks.checks {{ args }}

# Check style, format and types; changes nothing.
lint: setup
    .venv/bin/ruff check
    .venv/bin/ruff format --check
    .venv/bin/mypy

# Write the generated pages anew: configuration from the job's model, types from their contract, history from its frames.
docs: setup
    .venv/bin/python tools/configdoc.py > docs/configuration.md
    .venv/bin/python tools/typedoc.py > docs/types.md
    .venv/bin/python tools/historydoc.py > docs/history.md

# Pin the newest versions that fit, with hashes; commit the result after the tests pass with it.
pins:
    python3 -m venv .venv-pins
    .venv-pins/bin/pip install --quiet "pip-tools>=7.4"
    .venv-pins/bin/pip-compile --upgrade --quiet --all-extras --generate-hashes --allow-unsafe --strip-extras \
        --no-header --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
        --output-file constraints.txt pyproject.toml

# Run the tests on the lowest supported versions of polars, duckdb and pyarrow.
lowest *args:
    python3 -m venv .venv-lowest
    .venv-lowest/bin/pip install --quiet -e ".[azure,cloud,excel,test]" polars==2.0.0 duckdb==2.0.0 pyarrow==25.0.0
    .venv-lowest/bin/python -m pytest {{ args }}
