#!/usr/bin/env bash
# Pictures and sounds from data to scores: bash examples/two_modalities/run.sh   (needs pip install '.[audio]')
# Writes into two_modalities/ of the working directory. An interrupted run goes on when it is started again.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

[ -d two_modalities/data/ear ] || python "$here/make_data.py" two_modalities/data
grep -qs '"status": "completed"' two_modalities/run/status.json ||
  mmtune finetune "$here/two-modalities.yaml" --data two_modalities/data/train.json --output two_modalities/run
for part in test test_blank test_silent; do
  mmtune eval --model two_modalities/run --benchmark qa --data "two_modalities/data/$part.json" \
    --batch-size 64 --output "two_modalities/eval/$part"
done
