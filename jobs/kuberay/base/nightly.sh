#!/bin/sh
# The entrypoint of the RayJob: nightly.sh [OPTION...]. KubeRay only looks at whether it succeeds.
# 4: the dataset is as complete as its recipe allows. 6: another driver is making this night.
factory nightly /etc/factory/nightly.yaml --json "$@"
code=$?
case $code in
    4 | 6) exit 0 ;;
    *) exit $code ;;
esac
