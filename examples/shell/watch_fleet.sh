#!/bin/sh
# Shows what devices say of themselves: there or not, link, figures. usage: watch_fleet.sh [mosquitto_sub's options]
exec mosquitto_sub "$@" -v -t 'hedge/v1/+/up/status' -t 'hedge/v1/+/up/telemetry'
