"""Types into `qbridge chat` and `qbridge ask --repeat` through a pseudo-terminal, and looks at what comes.

    python3 tests/pty_chat.py QBRIDGE BUNDLE PICTURE DIR

DIR is the user's state directory. Every wait has a deadline; what was seen is printed where something does not come.
"""

import os
import pty
import select
import signal
import sys
import time

QBRIDGE, BUNDLE, PICTURE, STATE = sys.argv[1:]
DEADLINE = 60
CTRL_C, CTRL_D, UP, ENTER = b"\x03", b"\x04", b"\x1b[A", b"\r"


class Terminal:
    def __init__(self, *args, **env):
        self.seen = b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            environment = {
                **{name: value for name, value in os.environ.items() if name not in ("TMUX", "NO_COLOR")},
                "TERM": "xterm-256color",
                "COLORTERM": "truecolor",
                "XDG_STATE_HOME": STATE,
                "QBRIDGE_LOG": "error",
                **env,
            }
            os.execve(QBRIDGE, [QBRIDGE, *args], environment)

    def type(self, keys):
        os.write(self.fd, keys)

    def read(self, until):
        """One read, or None at the end."""
        left = until - time.monotonic()
        if left <= 0 or not select.select([self.fd], [], [], left)[0]:
            self.fail("nothing came")
        try:
            return os.read(self.fd, 65536) or None
        except OSError:
            return None

    def wait_for(self, expected):
        """Everything up to and with the bytes `expected`."""
        until = time.monotonic() + DEADLINE
        while expected not in self.seen:
            more = self.read(until)
            if more is None:
                self.fail(f"it ended before {expected!r}")
            self.seen += more
        before, after = self.seen.split(expected, 1)
        self.seen = after
        return before + expected

    def ends(self):
        """The exit code."""
        until = time.monotonic() + DEADLINE
        while (more := self.read(until)) is not None:
            self.seen += more
        while time.monotonic() < until:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.05)
        self.fail("it did not end")

    def fail(self, why):
        os.kill(self.pid, signal.SIGKILL)
        sys.exit(f"{why}; seen: {self.seen!r}")


def chat():
    terminal = Terminal("chat", BUNDLE, PICTURE, "--cache-type", "f32")
    # The picture is drawn before anything is asked.
    terminal.wait_for("▀".encode())
    terminal.wait_for(b"> ")
    terminal.type(b"What is thisX\x7f?" + ENTER)
    terminal.wait_for(b"a penguin")
    terminal.wait_for(b"> ")
    # A line that was begun is given up.
    terminal.type(b"nonsense" + CTRL_C)
    terminal.wait_for(b"> ")
    # The question before it comes back.
    terminal.type(UP)
    terminal.wait_for(b"What is this?")
    terminal.type(ENTER)
    terminal.wait_for(b"penguin")
    terminal.wait_for(b"> ")
    terminal.type(b"/he\t" + ENTER)
    terminal.wait_for(b"/save FILE")
    terminal.wait_for(b"> ")
    terminal.type(CTRL_D)
    assert terminal.ends() == 0


def history():
    with open(os.path.join(STATE, "qbridge", "history")) as file:
        lines = file.read().splitlines()
    assert "What is this?" in lines and "nonsense" not in lines, lines
    terminal = Terminal("chat", BUNDLE, "--no-pictures")
    terminal.wait_for(b"> ")
    terminal.type(UP + UP)
    terminal.wait_for(b"What is this?")
    terminal.type(CTRL_C)
    terminal.wait_for(b"> ")
    terminal.type(CTRL_D)
    assert terminal.ends() == 0


def stop():
    """Ctrl-C stops the answer, and the next question is answered."""
    terminal = Terminal(
        "chat", BUNDLE, PICTURE, "--no-pictures", "--no-history", "--min-tokens", "3000", "--max-tokens", "3000"
    )
    terminal.wait_for(b"> ")
    for _ in range(2):
        terminal.type(b"What is this?" + ENTER)
        terminal.wait_for(b"\n")
        # Some of the answer is there, which would go on for minutes.
        terminal.wait_for(b" ")
        stopped = time.monotonic()
        terminal.type(CTRL_C)
        terminal.wait_for(b"> ")
        assert time.monotonic() - stopped < 20
    terminal.type(b"/quit" + ENTER)
    assert terminal.ends() == 0


def repeat():
    terminal = Terminal("ask", BUNDLE, PICTURE, "--repeat", "--cache-type", "f32")
    terminal.wait_for(b"? ")
    terminal.type(b"What is this?" + ENTER)
    terminal.wait_for(b"a penguin")
    terminal.wait_for(b"? ")
    terminal.type(UP)
    terminal.wait_for(b"What is this?")
    terminal.type(ENTER)
    terminal.wait_for(b"a penguin")
    terminal.wait_for(b"? ")
    terminal.type(CTRL_D)
    assert terminal.ends() == 0


for each in (chat, history, stop, repeat):
    each()
