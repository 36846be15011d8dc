#!/bin/sh
# Fetches the Debian packages with real images into a folder and unpacks them there; needs no root.
# Usage: tools/fetch_data.sh DIR
# What cannot be fetched is named and left out, and the exit code stays 0: the tests that need it are skipped.
set -eu

packages="dataset-fashion-mnist tuxpaint-stamps-default mate-backgrounds lomiri-wallpapers-16.04"

say() { echo "fetch_data: $*"; }

if [ $# -ne 1 ]; then
    say "usage: tools/fetch_data.sh DIR" >&2
    exit 2
fi
mkdir -p "$1"
dir=$(cd "$1" && pwd)

missing=""
for package in $packages; do
    if [ -e "$dir/.fetched/$package" ]; then continue; fi
    if dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$'; then continue; fi
    missing="$missing $package"
done
if [ -z "$missing" ]; then exit 0; fi
if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then
    say "no apt-get and dpkg here, so left out:$missing"
    exit 0
fi

mkdir -p "$dir/.fetched" "$dir/.download"
trap 'rm -rf "$dir/.download"' EXIT
cd "$dir/.download"

# Root's apt would drop to a user who may not be able to write here.
apt() {
    apt-get -qq -o APT::Sandbox::User=root -o Acquire::Retries=1 -o Acquire::http::Timeout=20 "$@" >log 2>&1
}

# Package lists of our own: the system's may be absent or stale, and only root could renew those.
apt_with_own_lists() {
    apt -o "Dir::State::Lists=$PWD/lists" -o "Dir::Cache=$PWD/cache" -o Acquire::Languages=none \
        -o APT::Update::Error-Mode=any "$@"
}

# fetch PACKAGE [PACKAGES STILL TO COME]
fetch() {
    if apt download "$1"; then return 0; fi
    if [ ! -d lists ]; then
        mkdir -p lists/partial cache
        if ! apt_with_own_lists update; then
            say "the package archive cannot be reached, so left out: $*"
            exit 0
        fi
    fi
    apt_with_own_lists download "$1"
}

set -- $missing
while [ $# -gt 0 ]; do
    package=$1
    if fetch "$@" && dpkg -x "$package"_*.deb "$dir"; then
        rm -f "$package"_*.deb
        touch "$dir/.fetched/$package"
        say "$package is in $dir"
    else
        say "$package could not be fetched, so left out: $(grep -m 1 '^E:' log || echo 'no reason given')"
    fi
    shift
done
