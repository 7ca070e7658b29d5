#!/usr/bin/env bash
# Breaks it on purpose: kill -9, damaged files, full disks, signals; writes the table of docs/reliability.md.
#
#   bash launch/reliability.sh            everything, within 60 minutes on 2 CPU cores
#   bash launch/reliability.sh --quick    a few of each, 2 minutes, writes nothing
#   bash launch/reliability.sh --only training --kills 20

# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
set_up dev
cd "$repo"
exec env JAX_PLATFORMS=cpu PYTHONPATH="$repo:$repo/tests:$repo/tests/reliability" "$python" tests/reliability/run.py "$@"
