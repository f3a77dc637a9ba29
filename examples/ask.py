"""Asks a running server about a picture, with OpenAI's client (pip install openai).

    python3 ask.py http://127.0.0.1:8080/v1 qbridge-demo cat.png "What is this?"
"""

import base64
import os
import sys

from openai import OpenAI

url, model, picture, question = sys.argv[1:]
client = OpenAI(base_url=url, api_key=os.environ.get("QBRIDGE_API_KEY", "none"))
data = base64.b64encode(open(picture, "rb").read()).decode()
messages = [
    {
        "role": "user",
        "content": [
            # What kind of picture it is, its bytes say.
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
            {"type": "text", "text": question},
        ],
    }
]

answer = client.chat.completions.create(model=model, messages=messages)
print(answer.choices[0].message.content)

# The same, word by word as it comes.
for chunk in client.chat.completions.create(model=model, messages=messages, stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
