#!/usr/bin/env bash
# Train on several hosts with Open MPI: one process per GPU, found by jax.distributed through mpirun's variables.
#
#   launch/mpi.sh 16 hosts.txt runs/mla_rope mla_rope:xl --config.train.batch_size=512
#
# Arguments: processes, a host file ("node1 slots=8" a line), the run folder (shared by all hosts), a config, then any
# --config.KNOB=VALUE. Open MPI 5 needs `pip install mpi4py` beside mla_jax.
# Without any launcher, start one process on each host by hand:
#   python -m mla_jax.main --config=... --workdir=... --coordinator_address=HOST0:9876 --num_processes=2 --process_id=0
# What to expect: as launch/slurm.sbatch; process 0 alone writes to the terminal.
set -euo pipefail
[ $# -ge 4 ] || { echo "usage: $0 PROCESSES HOSTFILE RUN_FOLDER CONFIG [--config.KNOB=VALUE ...]" >&2; exit 2; }
processes=$1 hosts=$2 workdir=$3 config=$4
shift 4
exec mpirun -np "$processes" --hostfile "$hosts" --bind-to none -x PATH -x MLA_JAX_CACHE \
    "${PYTHON:-python}" -m mla_jax.main --config="$config" --workdir="$workdir" "$@"
