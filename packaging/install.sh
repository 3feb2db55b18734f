#!/bin/sh
# Installs Hedge on Debian 12 and 13 and on 64-bit Raspberry Pi OS of the same age.
#
#   sudo ./install.sh agent            the packages that lie beside this script, or in pool/ beside it
#   sudo ./install.sh agent URL        from an apt repository that `cargo xtask package --sign KEY` has made
#
# `cloud` instead of `agent` installs the cloud side.
set -eu

stop() {
    echo "install.sh: $1" >&2
    exit 1
}

role=${1:-}
repository=${2:-}
case $role in
agent) model=hedge-model-photo-small ;;
cloud) model=hedge-model-photo-large ;;
*) stop "say what to install: install.sh agent|cloud [URL]" ;;
esac
packages="hedge-$role hedge-onnxruntime $model"

architecture=$(dpkg --print-architecture 2>/dev/null) || stop "there is no dpkg here; Hedge is packaged for Debian and Raspberry Pi OS"
case $architecture in
amd64 | arm64) ;;
armhf | armel) stop "this system is 32-bit ($architecture), even if its kernel is not, and ONNX Runtime needs 64 bits: install the 64-bit Raspberry Pi OS" ;;
*) stop "there are packages for amd64 and arm64, not for $architecture" ;;
esac

# shellcheck disable=SC1091
. /etc/os-release
case ${VERSION_CODENAME:-unknown} in
bookworm | trixie) ;;
*) stop "this is ${PRETTY_NAME:-an unknown system}; Debian 12 or 13 or a Raspberry Pi OS made from them is needed" ;;
esac

[ "$(id -u)" = 0 ] || stop "only root can install packages: sudo $0 $*"

if [ -n "$repository" ]; then
    key=/usr/share/keyrings/hedge.asc
    /usr/lib/apt/apt-helper download-file "$repository/hedge.asc" "$key.new" >/dev/null ||
        stop "there is no key at $repository/hedge.asc; is that a signed repository of Hedge?"
    chmod 0644 "$key.new"
    mv "$key.new" "$key"
    echo "deb [signed-by=$key] $repository stable main" >/etc/apt/sources.list.d/hedge.list
    apt-get update
    # shellcheck disable=SC2086
    apt-get install --yes $packages
    exit
fi

here=$(cd "$(dirname "$0")" && pwd)
files=
for package in $packages; do
    found=
    # The shell sorts by name; the last of several is the newest in all but rare cases, and apt refuses a downgrade.
    for file in "$here/${package}"_*_"$architecture".deb "$here/${package}"_*_all.deb \
        "$here/pool/${package}"_*_"$architecture".deb "$here/pool/${package}"_*_all.deb; do
        if [ -f "$file" ]; then found=$file; fi
    done
    [ -n "$found" ] || stop "there is no ${package}_*_$architecture.deb in $here"
    files="$files $found"
done
# shellcheck disable=SC2086
apt-get install --yes $files
