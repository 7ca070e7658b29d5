#!/usr/bin/env bash
# The committed results again, from the committed rows: each docs/results/study_*/ (report, CSV, plots) and the made parts of the READMEs.
#
#   bash launch/reports.sh      no training and no GPU: about two minutes
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
set_up dev
cd "$repo"
export JAX_PLATFORMS=cpu
for folder in docs/results/study_*/; do
  name=$(basename "$folder")
  study=$name
  case $name in *_files) study=${name%_files}:files ;; esac # a form of a study has a folder of its own
  made=$(mktemp -d)
  "$python" -m mla_jax.main --mode study --config "$study" --workdir "$made" --report_only
  rm -rf "$folder/plots"
  cp -r "$made/report.md" "$made/results.csv" "$made/plots" "$folder"
  rm -rf "$made"
done
"$python" -m mla_jax.study.readme README.md docs/results/README.md
