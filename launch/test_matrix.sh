#!/usr/bin/env bash
# The test suite on every supported set of libraries, one after the other.
#
#   bash launch/test_matrix.sh [arguments of pytest, e.g. -k config]
#
#   Python 3.11 / jax 0.10.2    the locked set for 3.11
#   Python 3.12 / jax 0.11.2    what GPU images of this season have
#   Python 3.12 / jax 0.12.0.1  the locked set for 3.12 and newer
#
# PYTHON311, PYTHON312 name the interpreters (default: python3.11, python3.12). Environments are kept in .matrix/
# (git-ignored, 1 GB each); 10 to 20 minutes a set on 2 CPU cores. Exit code 0 when all sets pass; every set is tried.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

run_set() { # run_set NAME PYTHON "EXTRA PINS" [PYTEST ARGUMENTS]
    local name=$1 python=$2 pins=$3
    shift 3
    if ! command -v "$python" >/dev/null 2>&1; then
        echo "$name: $python is not there: install it, or name it with PYTHON311 or PYTHON312." >&2
        return 2
    fi
    local venv=$here/.matrix/$name
    if [ ! -f "$venv/.ready" ]; then
        rm -rf "$venv"
        mkdir -p "$here/.matrix"
        "$python" -m venv "$venv" &&
            "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: \
                -r "$here/requirements-lock.txt" -r "$here/requirements-dev-lock.txt" || return 1
        if [ -n "$pins" ]; then
            # shellcheck disable=SC2086  # several words by design
            "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: $pins || return 1
        fi
        "$venv/bin/python" -m pip install --quiet --no-deps --no-build-isolation --editable "$here" || return 1
        touch "$venv/.ready"
    fi
    echo "== $name: $("$venv/bin/python" -c 'import sys, jax, flax
print("Python %d.%d, jax %s, flax %s" % (*sys.version_info[:2], jax.__version__, flax.__version__))')"
    (cd "$here" && "$venv/bin/python" -m pytest -q -n "${MLA_JAX_TEST_WORKERS:-2}" --dist loadfile -m "not slow" "$@")
}

failed=()
run_set py311-jax010 "${PYTHON311:-python3.11}" "" "$@" || failed+=(py311-jax010)
run_set py312-jax011 "${PYTHON312:-python3.12}" \
    "jax==0.11.2 jaxlib==0.11.2 flax==0.12.10 orbax-checkpoint==0.12.4" "$@" || failed+=(py312-jax011)
run_set py312-jax012 "${PYTHON312:-python3.12}" "" "$@" || failed+=(py312-jax012)
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
echo "all sets pass"
