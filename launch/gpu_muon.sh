#!/usr/bin/env bash
# Muon against AdamW at size m, and the seconds to a loss beside nanoGPT's recipe in torch: pieces of at most 9 minutes.
#
#   bash launch/gpu_muon.sh OUT study [TRAIN VALID]     17 runs of 600 to 1,000 steps, as many as fit into MINUTES
#   bash launch/gpu_muon.sh OUT torch [TRAIN VALID]     4 learning rates of the torch peer (pip install -e ".[gpu,hf]")
#   bash launch/gpu_muon.sh OUT alone [TRAIN VALID]     one more seed of the best recipe with a GPU to itself: its seconds
#   bash launch/gpu_muon.sh OUT report [TRAIN VALID]    the tables of what is there
#
# Without TRAIN and VALID on the embedded stories. On H200s a run alone takes 78 s (a third of it steps), 14 runs by 8
# processes on two of them 6 minutes, torch's four 2.5 minutes. Repeat a part until it says that all is done.
# On a machine that keeps nothing, bring OUT back, merge the study's rows where the repository is kept (they count as
# done) and keep OUT's torch rows for the next call:
#
#   python -m mla_jax.study.rows docs/results/rows/study_muon.jsonl OUT/study_muon*.rows.jsonl
#
#   PYTHON=python3.12   the interpreter    MINUTES=8   of a call    SMOKE=1   toy models, on a CPU too
#   GPUS=2              part study: processes on GPUs 0 and 1, one each (the default is one GPU)
#   WORKERS=3           part study: so many processes share each GPU. Done sooner; such runs have steps and tokens to a
#                       loss and no seconds, which need the speed of runs that have the GPU to themselves (default: 1)
set -euo pipefail
usage="usage: gpu_muon.sh OUT study|torch|alone|report [TRAIN VALID]"
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
alone=study_muon:alone
peer=()
data=()
if [ -n "${SMOKE:-}" ]; then
  study=study_muon:smoke
  alone=study_muon:smoke
  peer=(--rates "1e-3,2e-3" --no_compile)
elif [ -n "$train" ]; then
  if [ ! -f "$train" ] || [ ! -f "$valid" ]; then
    echo "gpu_muon.sh: $train and $valid must be two files of stories: $usage" >&2
    exit 2
  fi
  train=$(here "$train")
  valid=$(here "$valid")
  study=study_muon:files
  alone=study_muon:files_alone
  data=(--config.common.data.path="$train" --config.common.data.valid_path="$valid")
  peer=(--knob data.path="$train" --knob data.valid_path="$valid")
fi
cd "$repo"
export MLA_JAX_CACHE=${MLA_JAX_CACHE:-$PWD/runs/cache}

case $part in
  study)
    WORKERS=${WORKERS:-1} GPUS=${GPUS:-1} PYTHON=$python bash launch/gpu_study.sh "$out" "$study" "$minutes" "${data[@]}"
    ;;
  alone)
    WORKERS=1 SHARING=1 GPUS=1 PYTHON=$python bash launch/gpu_study.sh "$out/alone" "$alone" "$minutes" "${data[@]}"
    ;;
  torch)
    "$python" -m mla_jax.bench.peers.torch_run "$study" "${peer[@]}" --max_minutes "$minutes" \
      --out "$out/torch.jsonl" 2>&1 | tee -a "$out/torch.log"
    ;;
  report)
    rows=("$out"/*.jsonl)
    "$python" -m mla_jax.bench.to_loss "$study" "${rows[@]}" | tee "$out/to_loss_${study//:/_}.md"
    if [ -d "$out/alone" ]; then
      "$python" -m mla_jax.bench.to_loss "$alone" "${rows[@]}" "$out"/alone/*.jsonl | tee "$out/to_loss_${alone//:/_}.md"
    fi
    ;;
  *)
    echo "gpu_muon.sh: $part is no part: $usage" >&2
    exit 2
    ;;
esac
