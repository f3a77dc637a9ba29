#!/usr/bin/env python3
"""Turns a command's real output into the picture of a terminal.

    pip install rich
    python scripts/capture.py docs/demo.svg "make demo" demo/ask.sh QBRIDGE BUNDLE

Runs what follows the title, and draws its standard output under a prompt line that shows the title.
"""

import io
import subprocess
import sys

from rich.console import Console
from rich.text import Text


def main() -> None:
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    path, title, *command = sys.argv[1:]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    console = Console(record=True, width=76, file=io.StringIO())
    console.print(Text(f"$ {title}", style="bold"))
    console.print(Text(output.rstrip()))
    console.save_svg(path, title="qbridge")


if __name__ == "__main__":
    main()
