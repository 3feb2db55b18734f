#!/bin/sh
# Gives a device a command and prints its reply. usage: call_command.sh DEVICE COMMAND [ARGS [mosquitto's options]]
set -eu
device=$1 command=$2 args=${3:-"{}"}
shift 2
shift "$(($# > 0))"
id=$(cat /proc/sys/kernel/random/uuid)
exec mosquitto_rr "$@" -W 60 -q 1 -t "hedge/v1/$device/down/command" -e "hedge/v1/$device/up/reply/$id" \
    -m "{\"id\":\"$id\",\"command\":\"$command\",\"args\":$args,\"by\":\"$(id -un)\"}"
