#!/usr/bin/env bash
# Asks the demo's questions about the demo's pictures, and finds one of them.
#
#     demo/ask.sh QBRIDGE BUNDLE
set -euo pipefail
qbridge=$1 bundle=$2
here=$(cd "$(dirname "$0")" && pwd)

while IFS=$'\t' read -r picture question; do
    printf '\n%s\n  Q: %s\n  A: ' "$picture" "$question"
    "$qbridge" ask "$bundle" "$here/pictures/$picture" "$question"
done <"$here/questions.tsv"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$qbridge" index "$bundle-heads" "$here/pictures" --out "$work/index" --quiet
printf '\nWhich picture is like "a rocket and a pizza"?\n'
(cd "$here" && "$qbridge" search "$work/index" "a rocket and a pizza" --top 3)
