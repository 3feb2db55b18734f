#!/bin/sh
# Takes a picture every so often and puts it where a source of kind `folder` looks.
# usage: folder_camera.sh FOLDER SECONDS PROGRAM…   for example: folder_camera.sh /srv/pictures 10 rpicam-still -n -o
# The picture's name is the program's last argument.
set -eu
folder=$1 seconds=$2
shift 2
while :; do
    name=$(date +%Y%m%d-%H%M%S).jpg
    # Written elsewhere on the same disk and then moved, so that half a picture is never seen.
    "$@" "$folder/.$name"
    mv "$folder/.$name" "$folder/$name"
    sleep "$seconds"
done
