#!/usr/bin/env bash
# Decode benchmark for one GPU session: what matters most first, every row on disk as soon as it is measured.
#
#   bash launch/gpu_bench.sh OUT_DIR [MINUTES [PART ...]]        10 minutes unless told; one GPU from sm80 on
#
#   headline  joint MLA r = d/2 with RoPE, MHA and MLA r = d, size m, at 1024 x 512, 16 x 512, 1 x 512, 64 x 4096; MHA by
#             cuDNN, both by plain XLA, all sampling methods together
#   per_head  latents per head, r = d/2 and r = d, at 1024 x 512
#   memory    the largest batch at 4,096 positions
#   torch     our torch decode loop beside our own steps, batch 16, 128, 1, 1024 (needs torch, as the next one)
#   hf        Hugging Face generate beside the whole call of ours, batch 1 and 128
#   prefill   beside the forward pass of training
#   correct   kernels in bfloat16 against float32 references, beyond 2^31 elements too
#   sweep     block sizes of the kernels
#   grid      the rest of the grid, until the time is up
# Run it again with the same OUT_DIR and it goes on where it stopped. Result: OUT_DIR/report.md, rows.jsonl, plots.
set -uo pipefail
out=${1:?usage: gpu_bench.sh OUT_DIR [MINUTES [PART ...]]}
minutes=${2:-10}
shift $(($# < 2 ? $# : 2))
parts=${*:-headline per_head memory torch hf prefill correct sweep grid}
python=${PYTHON:-python3}
began=$SECONDS
mkdir -p "$out"

left() { # seconds left, less the 15 that a process takes to start and to write its report
  awk "BEGIN{print int($minutes * 60) - ($SECONDS - $began) - 15}"
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

pair=(--point="mla r=d/2" --point=mha_rope)
for part in $parts; do
  case $part in
    headline)
      bench 150 --suite=decode "${pair[@]}" --point="mla r=d" --batch=1024 --batch=1 --batch=16 --context=512
      bench 70 --suite=decode "${pair[@]}" --point="mla r=d" --batch=64 --context=4096
      ;;
    per_head) bench 60 --suite=decode --point="per_head r=d/2" --point="per_head r=d" --only=plain --batch=1024 --context=512 ;;
    memory) bench 60 --suite=memory "${pair[@]}" ;;
    torch)
      XLA_PYTHON_CLIENT_PREALLOCATE=false \
        bench 330 --suite=peers --only=steps --point=mha_rope --batch=16 --batch=128 --batch=1 --batch=1024
      ;;
    hf)
      for label in "ours, whole call" deepseek llama; do # without ours the others say nothing
        XLA_PYTHON_CLIENT_PREALLOCATE=false bench 120 --suite=peers "${pair[@]}" --only="$label"
      done
      ;;
    prefill) bench 60 --suite=prefill "${pair[@]}" ;;
    correct) bench 90 --suite=kernels --only=correct ;;
    sweep) bench 120 --suite=kernels --only=sweep ;;
    grid) bench 600 --suite=decode ;;
    *)
      echo "gpu_bench.sh: $part is no part: headline per_head memory torch hf prefill correct sweep grid." >&2
      exit 2
      ;;
  esac
done
