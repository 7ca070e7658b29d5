#!/usr/bin/env bash
# docs/how-to/moe.md's table: 62 + 2 experts, top-6, in a tiny model on the embedded stories, balanced in different ways.
#
#   bash launch/moe_balance_cpu.sh [OUT_DIR]        a few minutes on two idle CPU cores
#
# Runs that are done are skipped.
set -euo pipefail
out=${1:-runs/moe_balance_cpu}
python=${PYTHON:-python3}

run() { # NAME FLAGS...
  local name=$1
  shift
  if [ -f "$out/$name/result.json" ]; then
    echo "$name is done"
    return
  fi
  "$python" -m mla_jax.main --config moe_mla_rope:xs --workdir "$out/$name" \
    --config.model.n_layers=2 --config.model.d_model=64 --config.model.n_heads=2 --config.model.max_len=96 \
    --config.model.d_expert=16 --config.tokenizer.vocab_size=512 --config.data.stories=3000 \
    --config.data.valid_stories=50 --config.train.steps=400 --config.train.batch_size=32 --config.train.seq_len=64 \
    --config.train.log_every=10 --config.train.eval_every=50 --config.optim.learning_rate=3e-3 \
    --config.sample.max_new_tokens=48 --config.sample.num_samples=1 --config.train.tensorboard=False "$@"
}

run bias
run bias_slow --config.model.router_bias_rate=0.001
run none --config.model.router_bias_rate=0
run aux --config.model.router_bias_rate=0 --config.model.router_aux_weight=0.01
"$python" -m mla_jax.train.expert_report "$out"/bias "$out"/bias_slow "$out"/none "$out"/aux --after=200
