#!/usr/bin/env bash
# A fleet over several hosts by ssh: one argument for each process, its role and its host, the controller first.
#
#     MODEL=/models/wan FOLDER=/opt/triptych bash deploy/ssh/fleet.sh \
#         controller=node-1 encoder=node-1 transformer=node-2 transformer=node-3 decoder=node-1
#
# FOLDER is Triptych's on every host, with its .venv. FLAGS are for the workers, CONTROLLER_FLAGS for the controller.
# Ctrl-C drains all. A process that ends isn't started again: that is a supervisor's work, and then all end.
set -euo pipefail
: "${MODEL:?a folder that all hosts reach, or a hub id}"
FOLDER=${FOLDER:-$PWD} PORT=${PORT:-7070} FLAGS=${FLAGS:-} CONTROLLER_FLAGS=${CONTROLLER_FLAGS:-}
# With a terminal of its own, a process over there ends when its connection does.
SSH=${SSH:-ssh -tt}

pids=()
# shellcheck disable=SC2329
drain() {
  trap - EXIT INT TERM
  for group in "${pids[*]:1}" "${pids[*]:0:1}"; do # the controller last
    # shellcheck disable=SC2086
    kill $group 2>/dev/null || true
    # shellcheck disable=SC2086
    wait $group || true
  done
}
trap drain EXIT
trap 'exit 0' INT TERM

start() { # HOST ROLE FLAGS…
  local host=$1 role=$2
  shift 2
  $SSH "$host" "cd '$FOLDER' && exec .venv/bin/python -P -m services.$role $*" </dev/null &
  pids+=($!)
}

controller=
port=$PORT
for one in "$@"; do
  role=${one%%=*} host=${one#*=}
  if [ "$role" = controller ]; then
    controller=$host:$PORT
    start "$host" "$role" --address "$host:$PORT" "$CONTROLLER_FLAGS"
  else
    port=$((port + 1))
    start "$host" "$role" --address "$host:$port" --controller "${controller:?the controller comes first}" \
      --model "'$MODEL'" "$FLAGS"
  fi
done
wait -n
