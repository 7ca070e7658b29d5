#!/usr/bin/env bash
# From nothing to a trained MLA+RoPE story model, in 5 minutes or less on 2 CPU cores.
#
#   bash launch/quickstart.sh [flags of mla_jax.main, e.g. --config.train.steps=200 or --workdir runs/mine]
#
# Makes .venv in the repository with the pinned packages, trains configs/quickstart.py in runs/quickstart (a finished
# run is kept, an interrupted one goes on) and prints what came out. Needs Python 3.11 or newer and about 2 GB of disk.
#
#   PYTHON=python3.12     the interpreter to build with; default: the first that fits
#   MLA_JAX_VENV=folder   where the environment goes; default: .venv in the repository

# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Print the first of runs/quickstart, runs/quickstart-2, ... that does not hold the checkpoint of its last step.
free_workdir() {
    "$python" -I - "$1" <<'PY'
import itertools, json, pathlib, sys

for n in itertools.count(1):
    run = pathlib.Path(sys.argv[1] + (f"-{n}" if n > 1 else ""))
    try:
        steps = json.loads((run / "config.json").read_text())["config"]["train"]["steps"]
    except (OSError, ValueError, KeyError, TypeError):
        break  # new, or broken in a way that training explains better
    if not (run / "checkpoints" / str(steps)).is_dir():
        break
    print(f"{run} holds a finished run, which is kept: the next goes to {sys.argv[1]}-{n + 1}.", file=sys.stderr)
print(run)
PY
}

set_up core
here=$repo/
[ "$PWD" != "$repo" ] || here=""
case " $* " in
    *" --workdir"* | *" -workdir"*) ;; # the caller chose
    *) set -- --workdir "$(free_workdir "${here}runs/quickstart")" "$@" ;;
esac
# -P: whatever lies in the folder this was called from must not be imported.
exec "$python" -P -m mla_jax.main --config "${here}configs/quickstart.py" "$@"
