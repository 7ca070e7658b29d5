#!/usr/bin/env bash
# A piece of a study on a machine that keeps nothing: train for so many minutes, bring the rows back, carry on later.
#
#   bash launch/gpu_study.sh OUT [STUDY] [MINUTES] [--config.KNOB=VALUE ...]      default: study_paper_a, 8 minutes
#
# WORKERS=3 in front (the default is 1): so many processes take turns on the one GPU, so that it computes for one while
# others compile and evaluate. Short runs get done two to three times as fast; a run's own speed says nothing then.
# SHARING=14 in front: so many in all take turns on the GPU, where another call runs beside this one (default: WORKERS).
# Each gets that part of the memory; XLA_PYTHON_CLIENT_MEM_FRACTION in front gives it another.
# GPUS=2 in front: WORKERS processes on each of two GPUs, all on the one study: the first two of CUDA_VISIBLE_DEVICES where
# it is set, else 0 and 1. The default, 1, leaves CUDA_VISIBLE_DEVICES as it is.
# REPORT=0 in front: no report at the end, which takes half a minute and needs no GPU; --report_only makes it later.
#
# OUT gets STUDY.rows.jsonl (a row as soon as it is finished: a call that is cut has them), report.md, results.csv and
# study*.log. A run that has trained when the minutes end is still evaluated: a minute and a half with ten workers, which
# a machine that takes itself back has to leave. Then, where the repository is kept:
#
#   python -m mla_jax.study.rows docs/results/rows/STUDY.jsonl OUT/STUDY.rows.jsonl
#
# and commit: rows there count as done, so the next call goes on with what is missing. Which studies in which order fit
# into an hour: docs/how-to/reproduce_a_table.md.
set -euo pipefail
out=${1:?usage: gpu_study.sh OUT [STUDY] [MINUTES] [--config.KNOB=VALUE ...]}
study=${2:-study_paper_a}
minutes=${3:-8}
workers=${WORKERS:-1} # on each GPU
sharing=${SHARING:-$workers}
gpus=${GPUS:-1}
if ! [[ $workers =~ ^[1-9][0-9]*$ && $gpus =~ ^[1-9][0-9]*$ && $sharing =~ ^[1-9][0-9]*$ ]]; then
  echo "gpu_study.sh: WORKERS is $workers, GPUS $gpus and SHARING $sharing: all count from 1." >&2
  exit 2
fi
if [ "$sharing" -lt "$workers" ]; then
  echo "gpu_study.sh: SHARING is $sharing, but $workers WORKERS are on each GPU: raise SHARING or leave it out." >&2
  exit 2
fi
processes=$((workers * gpus))
IFS=, read -ra devices <<<"${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 "$((gpus - 1))")}"
if [ "${#devices[@]}" -lt "$gpus" ]; then
  echo "gpu_study.sh: GPUS is $gpus, but CUDA_VISIBLE_DEVICES has ${#devices[@]}: lower GPUS." >&2
  exit 2
fi
shift "$(($# < 3 ? $# : 3))"
python=${PYTHON:-python3}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
began=$SECONDS
mkdir -p "$out"
name=${study//[:\/]/_}
work=runs/studies/$name # kept between calls while the machine is: a run that was cut goes on from its checkpoint
export MLA_JAX_CACHE=${MLA_JAX_CACHE:-$PWD/runs/cache}
if [ "$sharing" -gt 1 ]; then # each process takes its share of the memory at once, and 1.2 GiB beside it
  mib=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits 2>/dev/null | head -n 1) || true
  share=$(awk -v n="$sharing" -v mib="${mib:-0}" 'BEGIN { print 0.95 / n - (mib > 0 ? 1300 / mib : 0.05 / n) }')
  export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-$share}
fi

# numpy's threads of one process would wait in turns for cores that the other processes' threads spin on: the spectra of
# a run took a minute instead of a second with 8 processes on 32 cores.
if [ "$processes" -gt 1 ]; then export OPENBLAS_NUM_THREADS=${OPENBLAS_NUM_THREADS:-1}; fi

quiet=() # of several processes each would write the same report
if [ "$processes" -gt 1 ] || [ "${REPORT:-1}" = 0 ]; then quiet=(--rows_only); fi

work() { # NUMBER FLAGS...: one process, for what is left of the time; processes 1, 2, 3 ... are on GPUs 0, 1, 0 ...
  local log=$out/study$1.log left
  if [ "$gpus" -gt 1 ]; then export CUDA_VISIBLE_DEVICES=${devices[($1 - 1) % gpus]}; fi
  shift
  left=$(awk "BEGIN { print $minutes - ($SECONDS - $began) / 60 }")
  "$python" -m mla_jax.main --mode study --config "$study" --workdir "$work" --max_minutes "$left" \
    --sharing "$sharing" "${quiet[@]}" "$@" 2>&1 | tee "$log"
}

save() { # all rows so far, in one file that is never half written
  local own=$out/.rows.$BASHPID # of each writer: one that is stopped may still be at it
  find "$work/rows" -name '*.json' -exec cat {} + 2>/dev/null >"$own" || true
  mv "$own" "$out/$name.rows.jsonl"
}

(while sleep 3 && kill -0 $$; do save; done) >/dev/null 2>&1 & # ends with this script, however that ends
saver=$!
trap 'kill "$saver" 2>/dev/null || true' EXIT

pids=()
work 1 "$@" &
pids+=($!)
# The first one prepares the data; study.json says that they are there.
while [ "$processes" -gt 1 ] && [ ! -f "$work/study.json" ] && kill -0 "${pids[0]}" 2>/dev/null; do sleep 0.5; done
for ((i = 2; i <= processes; i++)); do
  work "$i" "$@" &
  pids+=($!)
done
status=0
for pid in "${pids[@]}"; do wait "$pid" || status=$?; done

# However it ended: what is done is brought back, and one report is made of it.
kill "$saver" 2>/dev/null || true
wait "$saver" 2>/dev/null || true
save
if [ "$processes" -gt 1 ] && [ "${REPORT:-1}" != 0 ] && [ -s "$out/$name.rows.jsonl" ]; then
  JAX_PLATFORMS=cpu "$python" -m mla_jax.main --mode study --config "$study" --workdir "$work" --report_only "$@" || true
fi
rm -f "$out"/.rows.* # of writers that were stopped
for file in report.md results.csv; do
  if [ -f "$work/$file" ]; then cp "$work/$file" "$out/"; fi
done
grep -h "FAILED\|runs done" "$out"/study*.log || true
wc -c "$out"/*
exit "$status"
