#!/usr/bin/env bash
# Does a trained model know the world's facts, and does the checker rank its training? One GPU and 16 cores: 6 min 21 s on
# an H100, data included (docs/results/world_gpu.md).
#
#   bash launch/gpu_world.sh OUT [flags of mla_jax.main for the training]
#
# OUT gets run/ (mla_rope:s, 2,000 steps), ngram.json, ranks.json, stories_step*.jsonl, world.md and times.txt. A run
# that is done is not trained again. Exit code 1: the model does not lead by 20 points, or the steps are out of order.
#
#   PYTHON=python3   WORLD_CONFIG=mla_rope:s   WORLD_STEPS="100 500 2000"   WORLD_STORIES=300   WORLD_TRAIN=100000
#   WORLD_TOKENS=400: what a small try-out on a CPU changes, e.g.
#   WORLD_CONFIG=smoke WORLD_STEPS="2 4" WORLD_STORIES=20 WORLD_TRAIN=300 WORLD_TOKENS=40 bash launch/gpu_world.sh OUT \
#     --config.data.stories=300 --config.data.valid_stories=20 --config.model.max_len=512
set -euo pipefail
out=${1:?usage: gpu_world.sh OUT [flags of mla_jax.main]}
shift
python=${PYTHON:-python3}
config=${WORLD_CONFIG:-mla_rope:s}
read -r -a steps <<<"${WORLD_STEPS:-100 500 2000}"
last=${steps[${#steps[@]} - 1]}
stories=${WORLD_STORIES:-300}
mkdir -p "$out"
: >"$out/times.txt"

timed() { # timed NAME COMMAND...: seconds to times.txt
  local name=$1 start=$SECONDS
  shift
  "$@"
  echo "$name $((SECONDS - start)) s" | tee -a "$out/times.txt"
}

# The 5-gram needs no accelerator: it is fitted beside the training.
CUDA_VISIBLE_DEVICES="" JAX_PLATFORMS=cpu "$python" -m mla_jax.world_trial ngram "$out" --stories "$stories" \
  --train "${WORLD_TRAIN:-100000}" &
ngram=$!
trap 'kill "$ngram" 2>/dev/null || true' EXIT

timed train "$python" -m mla_jax.main --config "$config" --workdir "$out/run" --config.train.steps="$last" \
  --config.train.batch_size=64 --config.train.eval_every=$((last < 500 ? last : 500)) \
  --config.checkpoint.keep_steps="($(printf '%s,' "${steps[@]}"))" "$@"
timed facts "$python" -m mla_jax.main --mode eval --workdir "$out/run" --step "$last" --fact_stories "$stories"
timed rank "$python" -m mla_jax.world_trial rank "$out" "$out/run" --steps 0 "${steps[@]}" --samples "$stories" \
  --max_new_tokens "${WORLD_TOKENS:-400}"
timed ngram wait "$ngram"
"$python" -m mla_jax.world_trial table "$out" "$out/run"
