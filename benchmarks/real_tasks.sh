#!/usr/bin/env bash
# The tables "Real tasks" of docs/benchmarks.md: RTE, MRPC and QNLI (4,000 training rows), a 6-layer
# all-MiniLM-L6-v2 teacher fine-tuned by ksel, a 3-layer student; a2c beside fine-tuning only and all
# types on (the references of its run), and random_hard.
#
#   benchmarks/real_tasks.sh DATA TEACHER OUT [SEED]
#
# DATA holds glue/<task>/{train,dev}.parquet; TEACHER is the encoder's folder. About 35 minutes on two cores.
set -euo pipefail
data=$1 teacher=$2 out=$3 seed=${4:-0}

run() { # task, agent, further settings
    local task=$1 agent=$2
    shift 2
    python -m ksel.run --task "$task" --agent "$agent" --data "$data" --teacher "$teacher" \
        --student.layers 3 --seed "$seed" --out "$out" --name "$task-$agent-s$seed" \
        --fine_tune.epochs 2 --fine_tune.learning_rate 1e-4 --optim.learning_rate 1e-4 \
        --env.phase_steps 4 --rows.reward 128 --rows.dev_on_the_way 200 \
        --knowledge.max_gain 1000 "$@"
}

for task in rte mrpc qnli; do
    case $task in
        rte) budget=(--optim.epochs 2) ;;
        mrpc) budget=(--optim.epochs 1.5) ;;
        qnli) budget=(--rows.train 4000 --optim.epochs 1.5) ;;
    esac
    run $task a2c "${budget[@]}" --episodes.count 4 --episodes.share 0.25
    run $task random_hard "${budget[@]}" --references '[]'
done
