#!/usr/bin/env bash
# The tables "Published methods", "Question answering" and "A small grid" of docs/benchmarks.md.
#
#   benchmarks/methods.sh DATA TEACHER OUT
#
# DATA holds glue/<task> and squad; TEACHER is all-MiniLM-L6-v2. About 90 minutes on two cores. MT-BERT's second teacher is the
# first one without its last two layers: two encoders of one family are what a small machine has.
set -euo pipefail
data=$1 teacher=$2 out=$3
here=$(cd "$(dirname "$0")" && pwd)
mrpc=(--task mrpc --data "$data" --student.layers 3 --optim.max_updates 60 --optim.learning_rate 3e-4
      --rows.reward 128 --signals.source live --threads 1)
tuned=(--fine_tune.epochs 2 --fine_tune.learning_rate 1e-4)

python -m ksel.sweep "$here/../configs/sweeps/methods.yaml" "${mrpc[@]:0:4}" --teacher "$teacher" "${tuned[@]}" \
    --optim.max_updates 60 --optim.learning_rate 3e-4 --rows.reward 128 --signals.source live --threads 1 --out "$out/methods"

python - "$teacher" "$out/four-layers" <<'PYTHON'
import sys
import torch
from transformers import AutoModel, AutoTokenizer

source, target = sys.argv[1:]
model = AutoModel.from_pretrained(source, dtype=torch.float32)
model.encoder.layer = model.encoder.layer[:4]
model.config.num_hidden_layers = 4
model.save_pretrained(target)
AutoTokenizer.from_pretrained(source).save_pretrained(target)
PYTHON
for method in mt_bert mt_bert_cls; do
    python -m ksel.run --method $method --teachers "$teacher" "$out/four-layers" "${mrpc[@]}" "${tuned[@]}" \
        --fine_tune.max_updates 100 --evaluations 0 --references '[]' --out "$out" --name $method
done

python -m ksel.sweep "$here/revisited_small.yaml" --data "$data" --teacher "$teacher" --threads 1 --out "$out/grid"

python -m ksel.run --task squad --agent static --knowledge.pool '[label, response, hidden/skip, value_relation/last_1]' \
    --knowledge.balance none --data "$data" --teacher "$teacher" --student.layers 3 --rows.train 2500 --rows.reward 64 \
    --rows.dev 800 --batching.max_length 192 --batching.size 16 --span.stride 64 --fine_tune.epochs 1.5 \
    --fine_tune.batch_size 16 --fine_tune.learning_rate 3e-4 --optim.epochs 1 --optim.learning_rate 3e-4 \
    --signals.source live --evaluations 0 --references '[finetune]' --threads 1 --out "$out" --name squad

python -m ksel.run --task squad --method mlkd_bert_span --data "$data" --teacher "$teacher" --student.layers 3 --rows.train 2500 \
    --rows.reward 64 --rows.dev 800 --batching.max_length 192 --batching.size 16 --span.stride 64 --fine_tune.epochs 1.5 \
    --fine_tune.batch_size 16 --fine_tune.learning_rate 3e-4 --optim.max_updates 202 --optim.learning_rate 3e-4 \
    --signals.source live --evaluations 0 --out "$out" --name squad_mlkd
