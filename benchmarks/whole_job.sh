#!/usr/bin/env bash
# The table "A whole job" of docs/benchmarks.md: online search and final student against one plain distillation of
# the same student and budget, with all_action, and with a2c and measured rewards.
#
#   benchmarks/whole_job.sh DATA TEACHER OUT
#
# DATA holds glue/mrpc; TEACHER is all-MiniLM-L6-v2. About 15 minutes on one core.
set -euo pipefail
data=$1 teacher=$2 out=$3
job=(--task mrpc --data "$data" --teacher "$teacher" --fine_tune.epochs 2 --fine_tune.learning_rate 1e-4 --student.layers 3
     --optim.max_updates 100 --optim.learning_rate 3e-4 --batching.max_length 96 --references '[all]' --evaluations 0 --threads 1 --out "$out")
python -m ksel.run --agent all_action "${job[@]}" --name all_action
python -m ksel.run --agent a2c --env.phase_steps 4 "${job[@]}" --name a2c
