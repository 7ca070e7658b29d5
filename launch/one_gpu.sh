#!/usr/bin/env bash
# Train on one GPU, however many the host has.
#
#   launch/one_gpu.sh runs/mla_rope mla_rope:m --config.data.path=stories.txt
#
# Arguments: the run folder, a config, then any --config.KNOB=VALUE. GPU=2 chooses another than the first.
# What to expect: `pip install -e ".[gpu]"` has been done; the first lines name the GPU and "cudnn attention in
# bfloat16", then a line every train.log_every steps. There is no mesh on one device. Ctrl-C or SIGTERM saves and stops;
# the same command goes on.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 RUN_FOLDER CONFIG [--config.KNOB=VALUE ...]" >&2; exit 2; }
workdir=$1 config=$2
shift 2
export CUDA_VISIBLE_DEVICES=${GPU:-0}
exec "${PYTHON:-python}" -m mla_jax.main --config="$config" --workdir="$workdir" "$@"
