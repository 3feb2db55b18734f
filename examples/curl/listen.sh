#!/bin/sh
# Shows every answer and correction as it is given. usage: listen.sh [URL]
exec curl --silent --show-error --fail --no-buffer "${1:-http://127.0.0.1:8787}/v1/answers"
