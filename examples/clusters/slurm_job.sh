#!/usr/bin/env bash
# Train on two nodes with four GPUs each: sbatch slurm_job.sh
# config.yaml: safe-dtype accelerate-config --gpus 4 --nodes 2 > config.yaml, on one of the nodes.
#SBATCH --job-name=train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
set -euo pipefail

# One launcher on each node; it starts one process for each GPU. They meet on the first node.
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MEETING_POINT=${hosts%%$'\n'*}

# Single quotes: every node puts its own SLURM_NODEID in.
srun --kill-on-bad-exit=1 bash -c 'exec safe-dtype launch --config_file config.yaml \
    --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * SLURM_GPUS_ON_NODE))" \
    --machine_rank "$SLURM_NODEID" --main_process_ip "$MEETING_POINT" --main_process_port 29500 \
    train.py'
