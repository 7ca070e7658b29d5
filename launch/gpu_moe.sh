#!/usr/bin/env bash
# A GPU session for mixture of experts, in parts of less than 10 minutes each, most important first:
#
#   bash launch/gpu_moe.sh OUT layer                        timings of one layer by every path (3 minutes)
#   bash launch/gpu_moe.sh OUT matched                      steps, memory and decode beside dense models (6 minutes)
#   bash launch/gpu_moe.sh OUT balance  TRAIN VALID         800 steps on real stories: bias, none, aux ... (6 minutes)
#   bash launch/gpu_moe.sh OUT balance_world                the same on the embedded stories
#   bash launch/gpu_moe.sh OUT report                       table and rows of the balance of what is there
#
# VARIANTS="bias bias_slow" in front of a balance part trains these alone: the default rate, 3e-3, beside 1e-3.
#
# The quality of matched models is a study: launch/gpu_study.sh OUT study_paper_b:files.
# The minutes are estimates from single runs. Rows go to OUT/*.jsonl at once, every command has a time limit, runs that are
# done are skipped and runs that were cut go on: repeat a part until it says that all is done.
set -uo pipefail
out=${1:?usage: gpu_moe.sh OUT layer|matched|balance|balance_world|report [TRAIN VALID]}
part=${2:?usage: gpu_moe.sh OUT layer|matched|balance|balance_world|report [TRAIN VALID]}
train=${3:-}
valid=${4:-}
python=${PYTHON:-python3}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)

limited() { # SECONDS COMMAND...
  timeout --signal=INT --kill-after=20 "$@" || echo "stopped or failed (exit code $?): ${*:2}" >&2
}

layer() { # FLAGS...
  limited 150 "$python" "$here/moe_layer.py" --out "$out/layer.jsonl" "$@"
}

step() { # FLAGS...
  limited 120 "$python" "$here/moe_step.py" --out "$out/step.jsonl" "$@"
}

run() { # NAME CONFIG FLAGS...
  local name=$1 config=$2 steps=${STEPS:-1000}
  shift 2
  if [ -f "$out/$name/result.json" ]; then
    echo "$name is done"
    return
  fi
  limited 280 "$python" -m mla_jax.main --config "$config" --workdir "$out/$name" --config.model.block=gpt \
    --config.train.batch_size=64 --config.train.seq_len=512 --config.train.steps="$steps" --config.train.eval_every=100 \
    --config.train.log_every=10 --config.checkpoint.every=250 --config.optim.learning_rate=1e-3 \
    --config.optim.warmup_steps=100 --config.model.dropout=0.1 --config.data.threads=8 "$@"
}

balance() { # PREFIX FLAGS...
  local prefix=$1 variant knobs
  shift
  for variant in ${VARIANTS:-}; do # all of them before the first is trained
    case $variant in
      bias | none | aux | bias_slow | softmax) ;;
      *)
        echo "gpu_moe.sh: VARIANTS has $variant: use some of bias none aux bias_slow softmax." >&2
        exit 2
        ;;
    esac
  done
  for variant in ${VARIANTS:-bias none aux bias_slow softmax}; do
    case $variant in
      bias) knobs=() ;;
      none) knobs=(--config.model.router_bias_rate=0) ;;
      aux) knobs=(--config.model.router_bias_rate=0 --config.model.router_aux_weight=0.01) ;;
      bias_slow) knobs=(--config.model.router_bias_rate=0.001) ;;
      softmax) knobs=(--config.model.router_score=softmax) ;;
    esac
    STEPS=800 run "${prefix}_$variant" moe_mla_rope_flop_matched "${knobs[@]}" "$@"
  done
}

stories() { # the files that the part needs are there, or it ends
  if [ ! -f "$train" ] || [ ! -f "$valid" ]; then
    echo "gpu_moe.sh: $part needs two files of stories: gpu_moe.sh OUT $part TRAIN VALID" >&2
    exit 2
  fi
}

grouped=(--impl grouped:pallas --impl grouped:xla --impl grouped:tokamax)
case $part in
  layer)
    layer --d_expert 512 --impl dense "${grouped[@]}"
    layer --d_expert 256 --impl dense "${grouped[@]}" --impl masked_dense
    # The parameter-matched width with experts in all layers, the named config's, and the rule's limit of E F = 8 d.
    for width in 31 32 64; do
      layer --d_expert $width --impl dense --impl masked_dense --impl grouped:pallas
    done
    for tokens in 1 16 128 1024; do
      layer --tokens $tokens --d_expert 256 --impl gathered --impl masked_dense --impl grouped:pallas
    done
    ;;
  matched)
    step --config mla_rope --name dense --set model.block=gpt --decode 1 --decode 128
    step --config moe_mla_rope_flop_matched --name flop_matched --decode 1 --decode 128
    step --config moe_mla_rope_param_matched --name param_matched --decode 1 --decode 128
    step --config moe_mla_rope_flop_matched --name flop_matched_tokamax --set model.grouped_impl=tokamax
    step --config moe_mla_rope_flop_matched --name flop_matched_xla --set model.grouped_impl=xla
    # Dense with the flop-matched model's total of parameters: 165.1M at 8,192 rows (sizing.match_total_params).
    step --config mla_rope --name dense_equal_total --set model.block=gpt --set model.d_ff=16399 --no_train \
      --decode 1 --decode 128
    ;;
  balance)
    stories
    balance stories --config.data.path="$train" --config.data.valid_path="$valid"
    ;;
  balance_world)
    balance world
    ;;
  report)
    shopt -s nullglob
    found=("$out"/{stories,world}_*/config.json)
    [ ${#found[@]} -eq 0 ] || "$python" -m mla_jax.train.expert_report "${found[@]%/config.json}" --rows "$out/balance.jsonl"
    ;;
  *)
    echo "gpu_moe.sh: $part is no part: layer, matched, balance, balance_world or report." >&2
    exit 2
    ;;
esac
