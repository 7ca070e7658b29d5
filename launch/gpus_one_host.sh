#!/usr/bin/env bash
# Train on all GPUs of one host: one process drives them all.
#
#   launch/gpus_one_host.sh runs/mla_rope mla_rope:xl --config.train.batch_size=256 --config.mesh.fsdp=2
#
# Arguments: the run folder, a config, then any --config.KNOB=VALUE. CUDA_VISIBLE_DEVICES chooses among the GPUs.
# What to expect: a start-up line "mesh  8 devices: data 4 x fsdp 2". Without --config.mesh.* every GPU holds a copy of
# the model and takes its share of the batch, which must divide by their number; a mesh that does not fit is refused in
# one sentence, exit code 2, before anything is compiled.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 RUN_FOLDER CONFIG [--config.KNOB=VALUE ...]" >&2; exit 2; }
workdir=$1 config=$2
shift 2
exec "${PYTHON:-python}" -m mla_jax.main --config="$config" --workdir="$workdir" "$@"
