#!/usr/bin/env bash
# Asks a running server about a picture, with curl and jq.
#
#     ask.sh http://127.0.0.1:8080/v1 qbridge-demo cat.png "What is this?"
set -euo pipefail
url=$1 model=$2 picture=$3 question=$4

# The picture goes through files: an argument of a command can be only so long.
base64 <"$picture" | tr -d '\n' |
    jq --raw-input --slurp --arg model "$model" --arg question "$question" '{
        model: $model,
        messages: [{role: "user", content: [
            {type: "image_url", image_url: {url: ("data:image/png;base64," + .)}},
            {type: "text", text: $question}
        ]}]
    }' |
    curl --silent --show-error --fail-with-body "$url/chat/completions" \
        --header "authorization: Bearer ${QBRIDGE_API_KEY:-none}" \
        --header "content-type: application/json" --data-binary @- |
    jq --raw-output '.choices[0].message.content'
