#!/usr/bin/env bash
# docs/results/tinystories_gpu.md: four attention variants at size m on real stories, one after the other, on one GPU.
#
#   bash launch/gpu_stories.sh TRAIN.txt VALID.txt [OUT_DIR]        about 2.5 minutes a variant on an H100
#
# Text files in TinyStories' layout. Runs that are done are skipped, runs that were cut go on.
set -euo pipefail
train=${1:?usage: gpu_stories.sh TRAIN.txt VALID.txt [OUT_DIR]}
valid=${2:?usage: gpu_stories.sh TRAIN.txt VALID.txt [OUT_DIR]}
out=${3:-runs/tinystories_gpu}
python=${PYTHON:-python3}

run() { # NAME CONFIG FLAGS...
  local name=$1 config=$2
  shift 2
  if [ -f "$out/$name/result.json" ]; then
    echo "$name is done"
    return
  fi
  "$python" -m mla_jax.main --config "$config" --workdir "$out/$name" \
    --config.data.path="$train" --config.data.valid_path="$valid" --config.data.threads=8 \
    --config.model.block=gpt --config.train.batch_size=128 --config.train.seq_len=512 "$@"
}

for variant in mha mha_rope mla mla_rope; do
  run "$variant" "$variant" --config.train.steps=1000 --config.train.eval_every=50 --config.train.log_every=50 \
    --config.checkpoint.every=50 --config.optim.learning_rate=1e-3 --config.optim.warmup_steps=100 \
    --config.model.dropout=0.1
done
run mha_speed mha --config.train.steps=140 --config.train.eval_every=140 --config.train.log_every=20 \
  --config.optim.warmup_steps=50

"$python" -m mla_jax.rows "$out"/*/result.json
