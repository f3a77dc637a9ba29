"""Gives the pictures of a web site that have no alt text their caption.

    qbridge caption BUNDLE site/ --out captions.jsonl
    python3 alt_text.py site/ captions.jsonl

Changes HTML files in place: an <img> without `alt` whose `src` is a captioned file of the site gets one, and every other byte
stays. `alt=""`, which says that a picture is decoration, is left alone, and so is what only looks like a tag: in comments,
scripts, styles, text fields and attributes. <noscript> and <template> hold tags as any other place does. Prints each
change, for somebody to read: a caption is a guess. Exit code 1 says that some pages could not be done.
"""

import html
import json
import os
import re
import shutil
import sys
import tempfile
from html.parser import HTMLParser
from urllib.parse import unquote, urljoin, urlsplit

# What is in these is text. Not every version of HTMLParser knows more than the first two.
TEXT = {"script", "style", "textarea", "title", "iframe", "noembed", "noframes", "xmp", "plaintext"}
# Where HTML has a comment end; versions of HTMLParser differ in it.
COMMENT = re.compile(r"<!--(?:-?>|.*?--!?>)", re.DOTALL)
CHARSET = re.compile(rb"<meta\b[^>]*\bcharset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)


class Images(HTMLParser):
    """Finds the pictures of a page that have no `alt`: where each tag begins, and its `src`."""

    def __init__(self, page):
        super().__init__()
        self.found, self.base, self.inside = [], None, None
        self.lines = [0] + [match.end() for match in re.finditer("\n", page)]
        # No `close`: it would look for tags behind the beginning of a comment or tag that has no end.
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attributes = dict(reversed(attrs))  # Of two with one name the first counts.
        if self.inside:
            return
        if tag in TEXT:
            self.inside = tag
        elif tag == "base" and self.base is None:
            self.base = attributes.get("href")
        elif tag == "img" and "alt" not in attributes and attributes.get("src"):
            line, column = self.getpos()
            self.found.append((self.lines[line - 1] + column, attributes["src"]))

    # In HTML `<script/>` begins a script as `<script>` does.
    handle_startendtag = handle_starttag

    def parse_comment(self, begin, report=True):
        comment = COMMENT.match(self.rawdata, begin)
        return comment.end() if comment else -1

    def handle_endtag(self, tag):
        if tag == self.inside:
            self.inside = None


def decoded(data):
    """The text of a page, and what encodes it again to the same bytes."""
    if b"\0" in data:
        raise ValueError("UTF-16, or no text")
    declared = None if data.startswith(b"\xef\xbb\xbf") else CHARSET.search(data[:1024])
    charset = declared[1].decode() if declared else "utf-8"
    # Bytes that are none of the charset's, as in a Latin-1 page that does not say so, stay what they are.
    page = data.decode(charset, "surrogateescape")
    if page.encode(charset, "surrogateescape") != data:
        raise ValueError(f"cannot be written in {charset} as it was")
    return page, charset


def caption_of(source, base, path, site, captions):
    """The caption of the site's file that `source` names on the page `path`; None where there is none."""
    try:
        url = urlsplit(urljoin(base or "", source.strip()))
        name = unquote(url.path)
        if url.scheme or url.netloc or not name:
            return None
        folder = site if name.startswith("/") else os.path.dirname(path)
        return captions.get(os.path.realpath(os.path.join(folder, name.lstrip("/"))))
    except ValueError:  # no URL, or no name of a file
        return None


def replace(path, data):
    """Writes a file so that whoever reads it meanwhile, or a full disk, finds the old one whole."""
    path = os.path.realpath(path)
    handle, new = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".alt_text-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        shutil.copymode(path, new)
        os.replace(new, path)
    except BaseException:
        os.unlink(new)
        raise


def give_alt(path, site, captions):
    with open(path, "rb") as file:
        page, charset = decoded(file.read())
    images = Images(page)
    parts, end, changes = [], 0, []
    for begin, source in images.found:
        caption = caption_of(source, images.base, path, site, captions)
        if caption is None:
            continue
        # References, so that it reads the same in every charset.
        alt = html.escape(caption).encode("ascii", "xmlcharrefreplace").decode()
        begin += len("<img")
        parts += [page[end:begin], f' alt="{alt}"']
        end = begin
        changes.append(f"{path}: {source}: {caption}")
    if changes:
        replace(path, "".join([*parts, page[end:]]).encode(charset, "surrogateescape"))
        print("\n".join(changes))


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    site, captions_file = sys.argv[1:]
    captions = {}
    with open(captions_file, encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            if row.get("caption"):
                captions[os.path.realpath(row["image"])] = row["caption"]
    sys.stdout.reconfigure(errors="backslashreplace")

    failed = []

    def fail(path, error):
        failed.append(path)
        print(f"alt_text.py: {path}: {error}", file=sys.stderr)

    for directory, _, files in os.walk(site, onerror=lambda error: fail(error.filename, error.strerror)):
        for name in sorted(files):
            if name.lower().endswith((".html", ".htm")):
                path = os.path.join(directory, name)
                try:
                    give_alt(path, site, captions)
                # HTMLParser asserts what a few broken declarations do not hold to.
                except (OSError, ValueError, LookupError, AssertionError) as error:
                    fail(path, error)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
