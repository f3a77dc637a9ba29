"""Gives the pictures of a web site that have no alt text their caption.

    qbridge caption BUNDLE site/ --out captions.jsonl
    python3 alt_text.py site/ captions.jsonl

Changes HTML files in place: an <img> without `alt` whose `src` is a captioned file of the site gets one. `alt=""`, which says
that a picture is decoration, stays as it is. Prints each change, for somebody to read: a caption is a guess.
"""

import html
import json
import os
import re
import sys
from urllib.parse import unquote, urlsplit

site, captions_file = sys.argv[1:]
captions = {}
with open(captions_file, encoding="utf-8") as lines:
    for line in lines:
        row = json.loads(line)
        if row.get("caption"):
            captions[os.path.realpath(row["image"])] = row["caption"]

IMG = re.compile(r"<img\b(?:[^>\"']|\"[^\"]*\"|'[^']*')*>", re.IGNORECASE)
ATTRIBUTE = re.compile(r"([\w:-]+)(?:\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"'>]+)))?")


def with_alt(page, match):
    tag = match.group(0)
    attributes = {}
    for name, *values in ATTRIBUTE.findall(tag[4:]):
        attributes.setdefault(name.lower(), html.unescape("".join(values)))
    source = urlsplit(attributes.get("src", ""))
    if "alt" in attributes or source.scheme or source.netloc or not source.path:
        return tag
    path = unquote(source.path)
    base = site if path.startswith("/") else os.path.dirname(page)
    caption = captions.get(os.path.realpath(os.path.join(base, path.lstrip("/"))))
    if caption is None:
        return tag
    print(f"{page}: {path}: {caption}")
    return f'{tag[:4]} alt="{html.escape(caption)}"{tag[4:]}'


for directory, _, files in os.walk(site):
    for name in files:
        if not name.lower().endswith((".html", ".htm")):
            continue
        page = os.path.join(directory, name)
        with open(page, encoding="utf-8", newline="") as file:
            before = file.read()
        after = IMG.sub(lambda match: with_alt(page, match), before)
        if after != before:
            with open(page, "w", encoding="utf-8", newline="") as file:
                file.write(after)
