#!/usr/bin/env bash
# Two GPUs over one, weak scaling: the measurement that docs/scaling.md predicts. For a host with two GPUs.
#
#   bash launch/gpu_two.sh OUT [part ...]        default: all parts but flags, about 12 minutes
#
#   speed      xl, 64 rows a GPU: one GPU, two by data parallel, two by FSDP (tokens/s over one GPU: >= 1.9x wanted)
#   cards      xl on one GPU: on the second one alone, then on both at once, each for itself: what the slower card costs,
#              and what their sharing a host does, with nothing sent between them
#   moe        as speed, of moe_mla_rope, and two GPUs by expert parallel
#   same       float32, 5 steps: losses of one GPU, data parallel, FSDP, tensor parallel, printed side by side
#   flags      xl, data parallel, with options of XLA: one sum of gradients at a time, small ones joined, gradients not
#              joined, fewer channels of NCCL
#   processes  one process a GPU through jax.distributed: 40 steps, and again, resumed by one process on one GPU
# What to expect: OUT/rows.jsonl, a row at a time; both absolute numbers beside each ratio; OUT/*.txt, all that was
# said. A part that fails says so and the next one goes on. ROWS=32 lowers the rows a GPU.
set -uo pipefail
out=${1:?usage: gpu_two.sh OUT [speed|cards|moe|same|flags|processes ...]}
shift
parts=${*:-speed cards moe same processes}
python=${PYTHON:-python3}
rows=${ROWS:-64}
IFS=, read -ra devices <<<"${CUDA_VISIBLE_DEVICES:-0,1}"
if [ "${#devices[@]}" -lt 2 ]; then
  echo "gpu_two.sh: CUDA_VISIBLE_DEVICES is $CUDA_VISIBLE_DEVICES; it must name two GPUs: leave it out for 0 and 1." >&2
  exit 2
fi
mkdir -p "$out"
one="mesh.data=1 train.batch_size=$rows"
data="mesh.data=2 train.batch_size=$((2 * rows))"
fsdp="mesh.data=1 mesh.fsdp=2 train.batch_size=$((2 * rows))"
expert="mesh.data=1 mesh.expert=2 train.batch_size=$((2 * rows))"

steps() { # NAME CONFIG FLAGS...: timed side by side in one process
  local name=$1 config=$2
  shift 2
  timeout 280 "$python" -m mla_jax.bench.train_step --config "$config" --name "$name" --batch "$rows" --length 512 \
    --out "$out/rows.jsonl" "$@" 2>&1 | tee "$out/$name.txt" || echo "$name: failed or cut"
}

for part in $parts; do
  case $part in
    speed)
      steps xl mla_rope:xl --variant "$one" --variant "$data" --variant "$fsdp" --repeats 4
      ;;
    cards)
      CUDA_VISIBLE_DEVICES=${devices[1]} steps xl_second_gpu mla_rope:xl --variant "$one" --repeats 4
      # More timings, so that the process that has compiled first is still at it when the other one begins.
      for i in 0 1; do
        CUDA_VISIBLE_DEVICES=${devices[i]} steps "xl_both_gpu$i" mla_rope:xl --variant "$one" --repeats 16 &
      done
      wait
      ;;
    moe) steps moe moe_mla_rope --variant "$one" --variant "$data" --variant "$fsdp" --variant "$expert" --repeats 4 ;;
    flags)
      tried=()
      at_once=xla_gpu_experimental_parallel_collective_overlap_limit joined=xla_gpu_all_reduce_combine_threshold_bytes
      for set in "$at_once=1" "$joined=6000000" "$at_once=64 $joined=1" xla_gpu_nccl_collective_max_nchannels=8; do
        tried+=(--variant "$data $set")
      done
      steps xl_flags mla_rope:xl --variant "$data" "${tried[@]}" --repeats 3
      ;;
    same)
      export NVIDIA_TF32_OVERRIDE=0
      for mesh in "mesh.data=1" "mesh.data=2" "mesh.data=1 mesh.fsdp=2" "mesh.data=1 mesh.tensor=2"; do
        timeout 120 "$python" -m mla_jax.bench.train_step --config mla_rope:s --name same --batch 16 --length 256 \
          --knob model.dtype=float32 --steps 1 --repeats 2 --variant "$mesh" --out "$out/same.jsonl" \
          2>&1 | tail -1 | tee -a "$out/same.txt"
      done
      unset NVIDIA_TF32_OVERRIDE
      ;;
    processes)
      flags=(--config=mla_rope:s --workdir="$out/run" --config.data.stories=20000 --config.train.eval_every=20
        --config.train.log_every=10 --config.train.batch_size=64 --config.optim.decay_steps=100)
      for i in 0 1; do
        CUDA_VISIBLE_DEVICES=${devices[i]} timeout 200 "$python" -m mla_jax.main "${flags[@]}" --config.train.steps=40 \
          --coordinator_address=localhost:9876 --num_processes=2 --process_id=$i >"$out/process$i.txt" 2>&1 &
      done
      wait
      tail -n 3 "$out/process0.txt" "$out/process1.txt"
      CUDA_VISIBLE_DEVICES=${devices[0]} timeout 120 "$python" -m mla_jax.main "${flags[@]}" --config.train.steps=60 \
        >"$out/resumed.txt" 2>&1 || echo "processes: resuming failed"
      grep -E "resuming|^step" "$out/resumed.txt"
      ;;
    *) echo "$part is no part: speed, cards, moe, same, flags, processes" >&2 && exit 2 ;;
  esac
done

[ ! -f "$out/same.jsonl" ] || "$python" - "$out/same.jsonl" <<'PY'
import json, sys
for line in open(sys.argv[1]):
    row = json.loads(line)
    if "loss" in row["metrics"]:
        print(f"{row['name']}: loss after 5 steps {row['metrics']['loss']:.7f}")
PY
[ ! -f "$out/rows.jsonl" ] || "$python" - "$out/rows.jsonl" <<'PY'
import json, sys
rows = [r for r in map(json.loads, open(sys.argv[1])) if "tokens_per_s" in r["metrics"]]
print("| step | ms | tokens/s | over one GPU |\n|---|---|---|---|")
for row in rows:
    alone = next(r for r in rows if r["name"].split()[0] == row["name"].split()[0])["metrics"]
    m = row["metrics"]
    print(f"| {row['name']} | {m['step_ms']:.2f} | {m['tokens_per_s']:,.0f} | {m['tokens_per_s'] / alone['tokens_per_s']:.3f}x |")
PY
