#!/usr/bin/env bash
# A piece of a study on a machine that keeps nothing: train for so many minutes, bring the rows back, carry on later.
#
#   bash launch/gpu_study.sh OUT [STUDY] [MINUTES] [--config.KNOB=VALUE ...]      default: study_paper_a, 8 minutes
#
# OUT gets STUDY.rows.jsonl, report.md, time.md, results.csv and study.log. Then, where the repository is kept:
#
#   python -m mla_jax.study.rows docs/results/rows/STUDY.jsonl OUT/STUDY.rows.jsonl
#
# and commit: rows there count as done, so the next call goes on with what is missing.
set -euo pipefail
out=${1:?usage: gpu_study.sh OUT [STUDY] [MINUTES] [--config.KNOB=VALUE ...]}
study=${2:-study_paper_a}
minutes=${3:-8}
shift "$(($# < 3 ? $# : 3))"
python=${PYTHON:-python3}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p "$out"
name=${study//[:\/]/_}
work=runs/studies/$name # kept between calls while the machine is: a run that was cut goes on from its checkpoint
export MLA_JAX_CACHE=${MLA_JAX_CACHE:-$PWD/runs/cache}

status=0
"$python" -m mla_jax.main --mode study --config "$study" --workdir "$work" --max_minutes "$minutes" "$@" 2>&1 |
  tee "$out/study.log" || status=$?
# However it ended: what is done is brought back.
find "$work/rows" -name '*.json' -exec cat {} + 2>/dev/null >"$out/$name.rows.jsonl" || true
for file in report.md time.md results.csv; do
  if [ -f "$work/$file" ]; then cp "$work/$file" "$out/"; fi
done
wc -c "$out"/*
exit "$status"
