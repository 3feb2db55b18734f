#!/bin/sh
# Sends a photo and waits up to ten seconds for the cloud's word on it. usage: send_photo.sh PHOTO [URL]
exec curl --silent --show-error --fail-with-body --data-binary "@$1" "${2:-http://127.0.0.1:8787}/v1/samples?wait_ms=10000"
