#!/usr/bin/env bash
# Installs the locked Node packages of a directory beside its scripts, once, and
# prints where: nothing is written into the checkout.
#
#     scripts/npm-target.sh PACKAGE_DIR CACHE_DIR
set -euo pipefail
package=$1 cache=$2

modules=$cache/node-$( (cat "$package/package-lock.json"; node --version) | sha256sum | cut -c1-12)
if [ ! -d "$modules" ]; then
    echo "fetching the Node packages of $package" >&2
    rm -rf "$modules.partial"
    mkdir -p "$modules.partial"
    cp "$package"/package*.json "$modules.partial"
    npm ci --prefix "$modules.partial" --ignore-scripts --no-audit --no-fund --loglevel=error >&2
    mv "$modules.partial" "$modules"
fi
echo "$modules"
