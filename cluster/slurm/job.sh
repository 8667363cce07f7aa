#!/usr/bin/env bash
# A Ray cluster over the machines of a Slurm job, and one of our commands on it. docs/slurm.md says more.
#
#   sbatch --nodes=4 --gpus-per-node=8 cluster/slurm/job.sh train all --shards /data/shards --storage /data/runs --name first
#
# Three minutes before the time is up Slurm sends a SIGUSR1; so it does before it takes the machines for another job, where
# it is set up with PreemptParameters=send_user_signal. Every machine drains then: training makes a checkpoint. The job
# queues again, and its command goes on from there.
#SBATCH --job-name=corrdiff
#SBATCH --exclusive
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(getent ahostsv4 "$first" | head -n 1 | cut -d ' ' -f 1):$((20000 + SLURM_JOB_ID % 10000))
token=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$token
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=${RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S:-120}

# One machine. Ray has a session of its own, for Slurm's signals are for this shell alone: it has Ray drain the machine.
machine() {
    setsid ray start --block --num-cpus="$SLURM_CPUS_ON_NODE" "$@" &
    local ray=$!
    trap 'kill -TERM "$ray"' USR1 TERM
    while kill -0 "$ray" 2> /dev/null; do wait "$ray" || true; done
}
export -f machine

# Without these a task is bound to one core.
all_cores=(--cpus-per-task="$SLURM_CPUS_ON_NODE" --cpu-bind=none)

# The label says how many GPUs there will be, when all machines have come.
srun --nodes=1 --ntasks=1 --nodelist="$first" "${all_cores[@]}" bash -c 'machine "$@"' machine \
    --head --node-ip-address="${address%:*}" --port="${address#*:}" --temp-dir="/tmp/ray-$SLURM_JOB_ID" \
    --labels="corrdiff-gpus=$((SLURM_JOB_NUM_NODES * ${SLURM_GPUS_ON_NODE:-0}))" &
head=$!
until ray health-check --address "$address" > /dev/null 2>&1; do
    kill -0 "$head" || exit 1
    sleep 1
done
others=
if ((SLURM_JOB_NUM_NODES > 1)); then
    srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks-per-node=1 --exclude="$first" "${all_cores[@]}" \
        bash -c 'machine "$@"' machine --address="$address" &
    others=$!
fi

# The head last: the others need it for their checkpoint.
leave() {
    echo "corrdiff: the machines are about to go away; draining them"
    for step in $others $head; do
        kill -USR1 "$step" || true
        while kill -0 "$step" 2> /dev/null; do wait "$step" || true; done
    done
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
RAY_ADDRESS=$address corrdiff "$@" &
command=$!
trap leave USR1
wait "$command"
