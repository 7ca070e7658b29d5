#!/usr/bin/env bash
# Decode benchmark for one GPU session: what matters most first, every row on disk as soon as it is measured.
#
#   bash launch/gpu_bench.sh OUT_DIR [MINUTES]        10 minutes unless told; one GPU from sm80 on
#
# 1 kernels right on this device (bfloat16, against float32 references); copy bandwidth
# 2 headline pairs: joint MLA r = d/2 with RoPE against MHA, size m, at 1024 x 512, 64 x 4096, 1 x 512, 16 x 512
# 3 prefill, the largest batch
# 4 peers: Hugging Face generate and our torch decode loop (skipped with a sentence where torch is missing)
# 5 block sizes of the kernels, then the rest of the grid, until the time is up
# Run it again with the same OUT_DIR and it goes on where it stopped. Result: OUT_DIR/report.md, rows.jsonl, plots.
set -uo pipefail
out=${1:?usage: gpu_bench.sh OUT_DIR [MINUTES]}
minutes=${2:-10}
python=${PYTHON:-python3}
began=$SECONDS
mkdir -p "$out"

left() { # seconds left, less the 15 that a process takes to start and to write its report
  echo $((minutes * 60 - (SECONDS - began) - 15))
}

bench() { # MAX_SECONDS FLAGS...: never past the end, and never in the way of what comes next
  local seconds=$1
  shift
  local rest
  rest=$(left)
  [ "$rest" -lt 20 ] && return 0
  [ "$seconds" -gt "$rest" ] && seconds=$rest
  # A measurement may begin just before max_minutes; timeout ends it where it would not end by itself.
  timeout $((seconds + 60 < rest + 10 ? seconds + 60 : rest + 10)) \
    "$python" -m mla_jax.main --mode bench --out "$out" --max_minutes="$(awk "BEGIN{print $seconds/60}")" "$@" 2>&1 |
    tee -a "$out/log.txt"
}

headline=(--suite=decode --point="mla r=d/2" --point=mha_rope --point="mla r=d")

bench 90 --suite=kernels --only=correct
bench 200 "${headline[@]}" --batch=1024 --batch=16 --batch=1 --context=512
bench 90 "${headline[@]}" --batch=64 --context=4096
bench 60 --suite=prefill --suite=memory --point="mla r=d/2" --point=mha_rope

XLA_PYTHON_CLIENT_PREALLOCATE=false bench 240 --suite=peers
bench 120 --suite=kernels --only=sweep
bench 600 --suite=decode
