#!/usr/bin/env bash
# The table "A whole job" of docs/benchmarks.md: search and final student against one plain distillation of the same
# student and budget: all_action online, and a2c with measured rewards.
#
#   benchmarks/whole_job.sh DATA TEACHER OUT
#
# DATA holds glue/mrpc and glue/rte; TEACHER is all-MiniLM-L6-v2. About 20 minutes on one core.
set -euo pipefail
data=$1 teacher=$2 out=$3
both=(--data "$data" --teacher "$teacher" --fine_tune.epochs 2 --fine_tune.learning_rate 1e-4 --references '[all]'
      --evaluations 0 --threads 1 --out "$out")
python -m ksel.run --agent all_action --task mrpc --student.layers 3 --optim.max_updates 100 --optim.learning_rate 3e-4 \
    --batching.max_length 96 "${both[@]}" --name mrpc_all_action
for agent in all_action a2c; do
    python -m ksel.run --agent $agent --task rte --env.phase_steps 2 --student.layers 2 --optim.max_updates 40 \
        --rows.reward 128 --batching.max_length 64 "${both[@]}" --name rte_$agent
done
