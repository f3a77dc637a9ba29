#!/usr/bin/env bash
# Asks a running server about a picture, with curl and jq.
#
#     ask.sh http://127.0.0.1:8080/v1 qbridge-demo cat.png "What is this?"
set -euo pipefail
url=$1 model=$2 picture=$3 question=$4

# Here, since all of a pipe has begun when its first command finds no picture: an empty one would be sent.
if [[ ! -r $picture || -d $picture ]]; then
    echo "ask.sh: $picture is no file that can be read" >&2
    exit 1
fi

# The picture goes through files: an argument of a command can be only so long.
answer=$(
    base64 <"$picture" | tr -d '\n' |
        jq --raw-input --slurp --arg model "$model" --arg question "$question" '{
            model: $model,
            messages: [{role: "user", content: [
                {type: "image_url", image_url: {url: ("data:image/png;base64," + .)}},
                {type: "text", text: $question}
            ]}]
        }' |
        curl --silent --show-error "$url/chat/completions" \
            --header "authorization: Bearer ${QBRIDGE_API_KEY:-none}" \
            --header "content-type: application/json" --data-binary @-
) || exit 1

# An error has a message in place of choices; anything else does not come from such a server.
if ! jq --exit-status --raw-output '.choices[0].message.content // empty' <<<"$answer" 2>/dev/null; then
    jq --exit-status --raw-output '.error.message // empty' <<<"$answer" >&2 2>/dev/null || echo "$answer" >&2
    exit 1
fi
