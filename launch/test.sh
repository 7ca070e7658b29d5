#!/usr/bin/env bash
# Lint and tests from nothing: 10 minutes or less on 2 CPU cores; --full adds the slow tests (60 minutes) and installs torch and
# transformers, which some of them compare with.
#
#   bash launch/test.sh [--full] [arguments of pytest, e.g. -k config -x]
#
#   MLA_JAX_TEST_WORKERS=4   tests that run at once; default 2
#   PYTHON, MLA_JAX_VENV     as for quickstart.sh

# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

selection="not slow"
full=""
if [ "${1:-}" = --full ]; then
    selection=""
    full=yes
    shift
fi

set_up dev
[ -z "$full" ] || add_hf
cd "$repo"
"$python" -m ruff check --output-format concise . ||
    die 1 "lint found what is shown above: 'ruff check --fix .' mends most of it."
"$python" -m ruff format --check . ||
    die 1 "the files above are not formatted: run 'ruff format .'."
# A file's tests stay on one worker, so that what they share is made once.
exec "$python" -m pytest -n "${MLA_JAX_TEST_WORKERS:-2}" --dist loadfile -m "$selection" "$@"
