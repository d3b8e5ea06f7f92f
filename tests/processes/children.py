"""What child processes do in tests of the mechanism."""

from __future__ import annotations

import os
import time
from typing import IO, Any


def echo(options: dict[str, Any], requests: IO[bytes], replies_fd: int) -> None:
    """Says each line back, after so many seconds; 'die' ends it by an exit code."""
    print("said on stdout")
    while line := requests.readline():
        if line == b"die\n":
            os._exit(7)
        time.sleep(options["after_s"])
        os.write(replies_fd, line)
