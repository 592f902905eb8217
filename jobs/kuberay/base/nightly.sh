#!/bin/sh
# The entrypoint of the RayJob: nightly.sh [OPTION...]. KubeRay only looks at whether it succeeds.
# 4: the dataset is as complete as its recipe allows. 6: another driver is making this night.
#
# nightly.sh stop, the preStop hook of the head, stops the driver and waits for it: when Kubernetes ends the pod, the driver
# itself gets no signal, and it would be killed together with Ray.
pid_file=${TMPDIR:-/tmp}/factory-nightly.pid

if [ "${1:-}" = stop ]; then
    pid=$(cat "$pid_file" 2>/dev/null) && kill -WINCH "$pid" 2>/dev/null || exit 0
    while kill -0 "$pid" 2>/dev/null; do sleep 0.2; done
    exit 0
fi

stopped=
# `ray job stop` signals the driver as well. A second signal would stop it without its grace period. Shells run the traps of
# pending signals by number, so that of TERM (15) comes before that of WINCH (28).
trap 'stopped=1' TERM
trap '[ -n "$stopped" ] || kill -TERM "$driver"; stopped=1' WINCH
echo $$ > "$pid_file"
factory nightly /etc/factory/nightly.yaml --json "$@" &
driver=$!
while :; do
    wait "$driver"
    code=$?
    kill -0 "$driver" 2>/dev/null || break  # a trap interrupts `wait`
done
rm -f "$pid_file"
case $code in
    4 | 6) exit 0 ;;
    *) exit "$code" ;;
esac
