#!/bin/bash
# sbatch examples/launch/slurm.sh run.yaml
# Two machines with eight GPUs each, one process per GPU. The file system is shared, and run.yaml names a folder on it.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300
# Five minutes before the end srun's processes get SIGTERM: each run saves at the end of its step and exits with 143.

export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) OMP_NUM_THREADS=8

# Without a checkpoint --resume starts from the beginning, so the same command starts and continues the run.
srun bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec colm train "$1" --resume' _ "$1"
status=$?
if [ $status -eq 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit $status
