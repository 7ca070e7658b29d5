#!/usr/bin/env bash
# Muon against AdamW at size m, and the seconds to a loss beside nanoGPT's recipe in torch: pieces of at most 9 minutes.
#
#   bash launch/gpu_muon.sh OUT study [TRAIN VALID]     14 runs of 1,000 steps, as many as fit into MINUTES
#   bash launch/gpu_muon.sh OUT torch [TRAIN VALID]     3 learning rates of the torch peer (pip install 'mla-jax[gpu,hf]')
#   bash launch/gpu_muon.sh OUT report [TRAIN VALID]    the tables of what is there
#
# Without TRAIN and VALID on the embedded stories. About 80 s a run on an H100 is expected (not measured yet). Repeat a
# part until it says that all is done. On a machine that keeps nothing, bring OUT back, merge the study's rows where the
# repository is kept (they count as done) and keep OUT's torch rows for the next call:
#
#   python -m mla_jax.study.rows docs/results/rows/study_muon.jsonl OUT/study_muon*.rows.jsonl
#
#   PYTHON=python3.12   the interpreter    MINUTES=8   of a call    SMOKE=1   toy models, on a CPU too
#   GPUS=2              part study: processes on GPUs 0 and 1, one each (the default is one GPU)
#   WORKERS=3           part study: so many processes share each GPU. Done sooner; such runs have steps and tokens to a
#                       loss and no seconds, which need the speed of runs that have the GPU to themselves (default: 1)
set -euo pipefail
usage="usage: gpu_muon.sh OUT study|torch|report [TRAIN VALID]"
out=${1:?$usage}
part=${2:?$usage}
train=${3:-}
valid=${4:-}
python=${PYTHON:-python3}
minutes=${MINUTES:-8}
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
here() { realpath --relative-to="$repo" "$1"; } # rows keep their command: it names no place of this machine
mkdir -p "$out"
out=$(here "$out")

study=study_muon
peer=()
data=()
if [ -n "${SMOKE:-}" ]; then
  study=study_muon:smoke
  peer=(--rates "1e-3,2e-3" --no_compile)
elif [ -n "$train" ]; then
  if [ ! -f "$train" ] || [ ! -f "$valid" ]; then
    echo "gpu_muon.sh: $train and $valid must be two files of stories: $usage" >&2
    exit 2
  fi
  train=$(here "$train")
  valid=$(here "$valid")
  study=study_muon:files
  data=(--config.common.data.path="$train" --config.common.data.valid_path="$valid")
  peer=(--knob data.path="$train" --knob data.valid_path="$valid")
fi
cd "$repo"
export MLA_JAX_CACHE=${MLA_JAX_CACHE:-$PWD/runs/cache}

case $part in
  study)
    WORKERS=${WORKERS:-1} GPUS=${GPUS:-1} PYTHON=$python bash launch/gpu_study.sh "$out" "$study" "$minutes" "${data[@]}"
    ;;
  torch)
    "$python" -m mla_jax.bench.peers.torch_run "$study" "${peer[@]}" --max_minutes "$minutes" \
      --out "$out/torch.jsonl" 2>&1 | tee -a "$out/torch.log"
    ;;
  report)
    rows=("$out"/*.jsonl)
    "$python" -m mla_jax.bench.to_loss "$study" "${rows[@]}" | tee "$out/to_loss_${study//:/_}.md"
    ;;
  *)
    echo "gpu_muon.sh: $part is no part: $usage" >&2
    exit 2
    ;;
esac
