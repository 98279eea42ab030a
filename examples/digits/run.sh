#!/usr/bin/env bash
# Real handwriting from pictures to a score, for both methods: bash examples/digits/run.sh [FOLDER]
# Needs mmtune and scikit-learn (pip install '.[examples]'). An interrupted run goes on when it is started again.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-digits}

[ -f "$folder/data/test.json" ] || python "$here/make_digits.py" "$folder/data"
for part in train val; do
  [ -d "$folder/prepared/$part" ] || mmtune prepare-data "$folder/data/$part.json" --output "$folder/prepared/$part"
done

for method in llava vlora; do
  grep -qs '"status": "completed"' "$folder/$method/status.json" ||
    mmtune finetune "$here/digits-$method.yaml" --data "$folder/prepared/train" \
      --set "data.validation=$folder/prepared/val" --output "$folder/$method"
  mmtune eval --model "$folder/$method/model" --benchmark qa --data "$folder/data/test.json" \
    --batch-size 32 --output "$folder/$method/eval"
done
