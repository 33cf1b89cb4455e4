#!/bin/bash
# A run on TPU VMs: SHARES single-host ones, named TPU-0, TPU-1, ..., draw its data; then all hosts of the slice TPU train.
#
#   TPU=int ZONE=us-east5-a bash experiments/launch/tpu_vm.sh share --config.problems.train_file=/mnt/nfs/train.parquet
#   TPU=int ZONE=us-east5-a bash experiments/launch/tpu_vm.sh train --config.problems.train_file=/mnt/nfs/train.parquet
#
# Make the machines first (gcloud compute tpus tpu-vm create, or queued-resources), with this repository and its .venv
# (pip install -e '.[tpu,gcs]') in FOLDER, and WORKDIR where all of them see it: gs://bucket/runs/qwen3, or a file system
# such as Filestore by NFS.
# Without single-host machines `train` alone makes everything. A machine that was taken away and made anew goes on by
# the same command. What is given behind the first word goes to experiments/run.py.

: "${TPU:?}" "${ZONE:?}" "${FOLDER:=int_jax}" "${WORKDIR:=/mnt/nfs/runs/qwen3}" "${SHARES:=8}" "${PAUSE:=60}"
: "${CONFIG:=experiments/configs/int.py:qwen3_4b}"

# On the machine, once more after each end with the code 75: all hosts of a slice end and begin together.
on() {
    local name=$1 worker=$2 command
    command=$(printf '%q ' .venv/bin/python experiments/run.py --config "$CONFIG" --workdir "$WORKDIR" "${@:3}")
    gcloud compute tpus tpu-vm ssh "$name" --zone="$ZONE" --worker="$worker" \
        --command="cd $FOLDER && while :; do $command; code=\$?; [ \$code -eq 75 ] || exit \$code; sleep $PAUSE; done"
}

case $1 in
share)
    started=() failed=0
    for ((index = 0; index < SHARES; index++)); do
        on "$TPU-$index" 0 --share="$index/$SHARES" "${@:2}" &
        started+=($!)
    done
    for one in "${started[@]}"; do
        wait "$one" || failed=1
    done
    exit "$failed"
    ;;
train)
    on "$TPU" all --distributed "${@:2}"
    ;;
*)
    echo "$0 share, then $0 train" >&2
    exit 2
    ;;
esac
