#!/bin/sh
# Sets a model's threshold, and nothing else: what is published is the whole of what is wanted. Says what came of it.
# usage: set_threshold.sh DEVICE MODEL SCORE_MIN [mosquitto's options]
set -eu
device=$1 model=$2 score=$3
shift 3
version=$(date +%s) # grows, as versions must
document="{\"version\":$version,\"settings\":{\"model\":{\"$model\":{\"threshold\":{\"score_min\":$score}}}}}"
# The first report is the one the broker kept, the second is about our document.
mosquitto_sub "$@" -W 60 -C 2 -t "hedge/v1/$device/up/reported" | {
    read -r _
    mosquitto_pub "$@" -q 1 -r -t "hedge/v1/$device/down/desired" -m "$document"
    read -r report
    echo "${report##*,\"last\":}"
}
