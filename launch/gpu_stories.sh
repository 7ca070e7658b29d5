#!/usr/bin/env bash
# docs/results/tinystories_gpu.md: four attention variants at size m on real stories, one after the other, on one GPU.
#
#   bash launch/gpu_stories.sh TRAIN.txt VALID.txt [OUT_DIR]        2 minutes a variant on an H100
#
# Text files in TinyStories' layout. Runs that are done are skipped, runs that were cut go on; VARIANTS="mla mla_rope"
# chooses some of them, for a machine that is lent for minutes.
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

read -r -a variants <<<"${VARIANTS:-mha_speed mha mha_rope mla mla_rope}"
for variant in "${variants[@]}"; do
  if [ "$variant" = mha_speed ]; then
    run mha_speed mha --config.train.steps=300 --config.train.eval_every=300 --config.train.log_every=50 \
      --config.optim.warmup_steps=50
    continue
  fi
  run "$variant" "$variant" --config.train.steps=1000 --config.train.eval_every=50 --config.train.log_every=50 \
    --config.checkpoint.every=250 --config.optim.learning_rate=1e-3 --config.optim.warmup_steps=100 \
    --config.model.dropout=0.1
done

"$python" -m mla_jax.rows "$out"/*/result.json
