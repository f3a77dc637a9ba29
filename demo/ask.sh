#!/usr/bin/env bash
# Asks the demo's questions about the demo's pictures.
#
#     demo/ask.sh QBRIDGE BUNDLE
set -euo pipefail
qbridge=$1 bundle=$2
here=$(cd "$(dirname "$0")" && pwd)

while IFS=$'\t' read -r picture question; do
    printf '\n%s\n  Q: %s\n  A: ' "$picture" "$question"
    "$qbridge" ask "$bundle" "$here/pictures/$picture" "$question"
done <"$here/questions.tsv"
