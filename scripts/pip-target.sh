#!/usr/bin/env bash
# Installs pinned Python packages into a directory of their own, once, and
# prints it, for PYTHONPATH. No virtual environment, nothing of the system's.
#
#     scripts/pip-target.sh REQUIREMENTS CACHE_DIR
set -euo pipefail
requirements=$1 cache=$2

packages=$cache/python-$( (cat "$requirements"; python3 --version) | sha256sum | cut -c1-12)
if [ ! -d "$packages" ]; then
    echo "fetching the Python packages of $requirements" >&2
    rm -rf "$packages.partial"
    PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-warn-conflicts \
        -r "$requirements" --target "$packages.partial" >&2
    mv "$packages.partial" "$packages"
fi
echo "$packages"
