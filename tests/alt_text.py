"""What examples/alt_text.py changes in pages, and what it leaves alone.

python3 tests/alt_text.py
"""

import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent.parent / "examples/alt_text.py"
ALT = b' alt="a &quot;cat&quot; &amp; a caf&#233;"'


class AltText(unittest.TestCase):
    def setUp(self):
        dir = tempfile.TemporaryDirectory()
        self.addCleanup(dir.cleanup)
        self.dir = Path(dir.name)
        self.site = self.dir / "site"
        (self.site / "sub").mkdir(parents=True)
        rows = [
            {"image": "site/cat.png", "caption": 'a "cat" & a café', "error": None},
            {"image": "site/sub/ü b.png", "caption": "a <b>", "error": None},
            {"image": "site/broken.png", "caption": None, "error": "no picture"},
        ]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (self.dir / "captions.jsonl").write_text(lines, encoding="utf-8")

    def write(self, name, page):
        path = self.site / name
        path.write_bytes(page)
        return path

    def run_script(self, site="site"):
        return subprocess.run(
            [sys.executable, SCRIPT, site, "captions.jsonl"], cwd=self.dir, capture_output=True, encoding="utf-8"
        )

    def becomes(self, before, after, name="page.html"):
        page = self.write(name, before)
        run = self.run_script()
        self.assertEqual((run.returncode, run.stderr), (0, ""), before)
        self.assertEqual(page.read_bytes(), after)
        self.assertEqual(bool(run.stdout), before != after, before)
        page.unlink()

    def test_an_image_gets_its_caption(self):
        for before, after in [
            (b"<img src=cat.png>", b"<img%s src=cat.png>"),
            (b'<p>\r\n <IMG\n src = "cat.png?v=1#a"\n/></p>\n', b'<p>\r\n <IMG%s\n src = "cat.png?v=1#a"\n/></p>\n'),
            (b"<img src='/cat.png' title='a > b'>", b"<img%s src='/cat.png' title='a > b'>"),
            (b"<img src=cat.png src=dog.png>", b"<img%s src=cat.png src=dog.png>"),
            (b"<noscript><img src=cat.png></noscript>", b"<noscript><img%s src=cat.png></noscript>"),
            (b"<template><img src=cat.png></template>", b"<template><img%s src=cat.png></template>"),
            (b"<script>1</script>\n<img src=cat.png>", b"<script>1</script>\n<img%s src=cat.png>"),
            (b"<!--><img src=cat.png><!-- a --!>", b"<!--><img%s src=cat.png><!-- a --!>"),
            (b"<img data-alt=x src=c&#97;t.png>", b"<img%s data-alt=x src=c&#97;t.png>"),
        ]:
            self.becomes(before, after % ALT)
        self.becomes(b"<img src=cat.png><img src=cat.png>", b"<img%s src=cat.png><img%s src=cat.png>" % (ALT, ALT))
        self.becomes(b"<img src=../cat.png>", b"<img%s src=../cat.png>" % ALT, "sub/page.HTM")
        self.becomes(b'<base href="sub/"><img src=../cat.png>', b'<base href="sub/"><img%s src=../cat.png>' % ALT)

    def test_names_are_decoded(self):
        for charset, name in [("utf-8", "ü b.png"), ("utf-8", "%C3%BC%20b.png"), ("iso-8859-1", "ü b.png")]:
            before = f'<meta charset="{charset}"><img src="sub/{name}">'
            after = before.replace("<img", '<img alt="a &lt;b&gt;"')
            self.becomes(before.encode(charset), after.encode(charset))

    def test_everything_else_stays(self):
        for page in [
            b'<img alt="" src=cat.png>',
            b"<img src=cat.png ALT>",
            b"<img src=cat.png alt='x'>",
            b"<img src=dog.png><img src=broken.png><img><img src>",
            b"<img src=https://a.example/cat.png><img src=//a.example/cat.png><img src=data:,cat.png>",
            b"<img src='http://['><img src='%00'>",
            b"<base href=https://a.example/><img src=cat.png>",
            b"<img-x src=cat.png></img-x><image src=cat.png>",
            b"""<p title="<img src='cat.png'>">a</p>""",
            b"""<iframe srcdoc='<img src="cat.png">'></iframe>""",
            b"<!-- <img src=cat.png> -->",
            b"<!-- a -- > <img src=cat.png> -->",
            b"<!-- a > b\n<img src=cat.png>\n-->",
            b"""<script>x = "<img src='cat.png'>"; if (1 < 2 && "</p>") y = "<img src=cat.png>"</script>""",
            b"<script/>'<img src=cat.png>'</script>",
            b"<style>/* <img src=cat.png> */</style>",
            b"<textarea><img src=cat.png></textarea><title><img src=cat.png></title>",
            b"<img src=cat.png",
            b"<!-- <img src=cat.png>",
            b"<p title='<img src=cat.png>",
            b"",
        ]:
            self.becomes(page, page)

    def test_bytes_of_any_charset_stay(self):
        odd = b"caf\xe9 \x80\x85 \xff\xfe\r\n\x0b\x0c\x1c \xe2\x80\xa8"
        for head in [b"", b"\xef\xbb\xbf", b"<meta charset=utf-8>", b"<meta charset='windows-1252'>"]:
            page = head + odd + b"<img src=cat.png>" + odd
            self.becomes(page, page.replace(b"<img", b"<img" + ALT))
        meta = '<meta http-equiv="content-type" content="text/html; charset=ISO-2022-JP">'
        page = f"{meta}日本語<img src=cat.png>日本".encode("iso-2022-jp")
        self.becomes(page, page.replace(b"<img", b"<img" + ALT))

    def test_a_page_that_cannot_be_done_keeps_no_other(self):
        kept = {
            "a.html": "<img src=cat.png>".encode("utf-16"),
            "b.html": b"<meta charset=klingon><img src=cat.png>",
        }
        for name, data in kept.items():
            self.write(name, data)
        (self.site / "c.html").symlink_to("nowhere")
        done = self.write("d.html", b"<img src=cat.png>")
        os.chmod(done, 0o640)
        run = self.run_script()
        self.assertEqual(run.returncode, 1)
        self.assertEqual([line.split(": ")[1] for line in run.stderr.splitlines()], [f"site/{n}.html" for n in "abc"])
        self.assertEqual(done.read_bytes(), b"<img%s src=cat.png>" % ALT)
        self.assertEqual(done.stat().st_mode & 0o777, 0o640)
        self.assertEqual({name: (self.site / name).read_bytes() for name in kept}, kept)
        self.assertEqual(sorted(os.listdir(self.site)), ["a.html", "b.html", "c.html", "d.html", "sub"])

    def test_a_second_run_changes_nothing(self):
        page = self.write("page.html", b"<img src=cat.png>")
        self.run_script()
        before = page.stat().st_ino
        run = self.run_script()
        self.assertEqual((run.returncode, run.stdout), (0, ""))
        self.assertEqual(page.stat().st_ino, before)

    def test_a_site_that_is_not_there_is_an_error(self):
        run = self.run_script("nowhere")
        self.assertEqual(run.returncode, 1)
        self.assertIn("nowhere", run.stderr)


if __name__ == "__main__":
    unittest.main()
