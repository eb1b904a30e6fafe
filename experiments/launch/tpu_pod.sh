#!/bin/bash
# Trains on all hosts of a TPU pod slice, one process a host:
#
#   experiments/launch/tpu_pod.sh my-tpu us-central2-b gs://bucket/avs_jax.tar.gz \
#       --config=configs/tpavi.py:setting=s4,root=/data/avsbench --workdir=gs://bucket/runs/s4 --config.batch_size=64
#
# The third argument is an archive of this repository (`git archive --format=tar.gz HEAD -o avs_jax.tar.gz`), which
# every host unpacks and installs. Data must be there on every host, or on a bucket that is mounted. The same command
# goes on after a pre-emption. PROJECT=... names another project than gcloud's own.
set -euo pipefail

if [[ $# -lt 4 ]]; then
  echo "error: expected <tpu> <zone> <gs://archive.tar.gz> and the arguments of avs_jax.train; found $# arguments" >&2
  exit 2
fi
tpu=$1 zone=$2 archive=$3
shift 3
arguments=$(printf '%q ' "$@")
flags=(--zone="$zone" --worker=all)
if [[ -n ${PROJECT:-} ]]; then
  flags+=(--project="$PROJECT")
fi
install="mkdir -p ~/avs_jax && cd ~/avs_jax && gcloud storage cp $(printf '%q' "$archive") avs_jax.tar.gz \
&& tar xzf avs_jax.tar.gz && python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e '.[tpu]'"
# One line for every host; the hosts find each other by the pod's own data.
gcloud compute tpus tpu-vm ssh "$tpu" "${flags[@]}" --command="$install"
gcloud compute tpus tpu-vm ssh "$tpu" "${flags[@]}" \
  --command="cd ~/avs_jax && exec .venv/bin/python -u -m avs_jax.train --distributed $arguments"
