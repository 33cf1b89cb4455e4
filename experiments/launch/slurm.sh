#!/bin/bash
# A run on Slurm: SHARES jobs draw its data, then one job of NODES nodes trains on it. From the repository's folder:
#
#   WORKDIR=/shared/runs/qwen3 bash experiments/launch/slurm.sh --config.problems.train_file=/shared/train.parquet
#
# Change the lines of #SBATCH, and what follows them here, by the environment or in a copy. All nodes must see WORKDIR
# and .venv. What is given behind the script goes to experiments/run.py.
#SBATCH --job-name=int_jax
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --time=12:00:00
# To the processes of srun, not to this script: a run that gets it saves what it has and ends with the code 75.
#SBATCH --signal=TERM@300
# After a lost or preempted node, too.
#SBATCH --requeue
#SBATCH --open-mode=append

: "${WORKDIR:=runs/qwen3}" "${CONFIG:=experiments/configs/int.py:qwen3_4b}" "${SHARES:=32}" "${NODES:=4}"
export WORKDIR CONFIG SHARES
run=(.venv/bin/python experiments/run.py --config "$CONFIG" --workdir "$WORKDIR")

what=$1
case $what in
share)
    job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    srun "${run[@]}" --share="$SLURM_ARRAY_TASK_ID/$SHARES" "${@:2}"
    ;;
train)
    job=$SLURM_JOB_ID
    srun "${run[@]}" --distributed "${@:2}"
    ;;
*)
    # A node each: what one share holds of the model must fit there. %8: so many at once.
    data=$(sbatch --parsable --nodes=1 --array="0-$((SHARES - 1))%8" "$0" share "$@") || exit
    # Shares that run again have not ended for Slurm: it waits for their 0.
    exec sbatch --nodes="$NODES" --dependency="afterok:${data%%;*}" "$0" train "$@"
    ;;
esac
code=$?
# EX_TEMPFAIL: a share that waits for others, or a run that was asked to end; the same job goes on later.
if [ "$code" -eq 75 ]; then
    scontrol requeue "$job"
fi
exit "$code"
