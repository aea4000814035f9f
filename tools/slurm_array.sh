#!/bin/bash
#SBATCH --job-name=cctlib
#SBATCH --array=1-12
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --gres=gpu:1
# Train the network in row $SLURM_ARRAY_TASK_ID of a table (the first argument) in pieces: 120 seconds before the job's
# time is up the training saves a checkpoint, and the job queues again. `cctlib` is that of the environment which is
# active at sbatch; install a wheel there, since a checkout may change while jobs wait. `make campaign` is the same
# without Slurm.
set -euo pipefail
IFS=$'\t' read -r name dataset recipe seed options < <(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "${1:?give the table of networks}")
folder=runs/campaign/$name
status=0
# shellcheck disable=SC2086 # options are words
${SLURM_JOB_ID:+srun} cctlib train --dataset "$dataset" --recipe "$recipe" --seed "$seed" --folder "$folder" --resume ${options:-} || status=$?
[ "$status" -eq 0 ] || [ "$status" -eq 143 ] || exit "$status" # 143: stopped by SIGTERM, with a checkpoint
if [ -n "${SLURM_JOB_ID:-}" ] && [ ! -f "$folder/manifest.json" ]; then
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
