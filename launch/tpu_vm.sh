#!/usr/bin/env bash
# Train on a Cloud TPU slice: the same command on every host of it.
#
#   launch/tpu_vm.sh my-v5e-16 us-west4-a /mnt/shared/runs/mla_rope mla_rope:xl --config.train.batch_size=512
#
# Arguments: the slice's name and zone, the run folder (a path that all hosts share, e.g. a mounted bucket or Filestore),
# a config, then any --config.KNOB=VALUE. Create the slice before:
#   gcloud compute tpus tpu-vm create my-v5e-16 --zone=us-west4-a --accelerator-type=v5litepod-16 \
#       --version=v2-alpha-tpuv5-lite
# And bring this repository to every host, into the folder mla_jax of its home (or another: CHECKOUT=FOLDER in front):
#   gcloud compute tpus tpu-vm scp --recurse . my-v5e-16:mla_jax --zone=us-west4-a --worker=all
# What to expect: `pip install -e ".[tpu]"` runs there first on every host; jax.distributed finds the hosts by the slice's
# metadata; process 0 reports "mesh  16 devices: data 16, 4 processes". Attention is plain XLA there, in bfloat16. The
# code lowers for TPUs (tests), but has not been run on one.
set -euo pipefail
[ $# -ge 4 ] || { echo "usage: $0 NAME ZONE RUN_FOLDER CONFIG [--config.KNOB=VALUE ...]" >&2; exit 2; }
name=$1 zone=$2 workdir=$3 config=$4
shift 4
case $workdir in
    gs://*)
        echo "$0: run folders are ordinary paths: mount the bucket (gcsfuse) on every host, and give that path." >&2
        exit 2
        ;;
esac
checkout=${CHECKOUT:-mla_jax}
command="cd $(printf '%q' "$checkout") && pip install --quiet -e '.[tpu]' && python3 -m mla_jax.main $(printf '%q ' --config="$config" --workdir="$workdir" "$@")"
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$command"
