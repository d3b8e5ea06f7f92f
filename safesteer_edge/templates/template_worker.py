"""The child process that renders one untrusted chat template. Run as a file, never imported.

It speaks JSON lines: it says {"ready": true}, then answers each request on stdin with one line,
{"text": …} or {"kind": "refused" | "broken", "message": …}. It ends when stdin does, so it cannot
outlive its parent; a render that outlives the parent is ended by the timers here.

argv[1] is a JSON object: import_paths (folders of jinja2 and of this package: the interpreter
runs isolated and sees neither), memory_bytes, render_s.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import math
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safesteer_edge.templates.template_sandbox import TemplateSandbox


try:
    import resource
except ImportError:  # Windows
    resource = None


class _Worker:
    def __init__(self) -> None:
        self._sandbox: TemplateSandbox | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do one request; an exception of any kind is the template's, and becomes an answer."""
        from jinja2 import TemplateSyntaxError
        from jinja2.exceptions import SecurityError

        from safesteer_edge.templates.template_sandbox import TooMuchOutputError

        try:
            return self._do(request)
        except TemplateSyntaxError as error:
            return _failure("broken", f"syntax error in line {error.lineno}: {error.message}")
        except (SecurityError, TooMuchOutputError) as error:
            return _failure("broken", str(error))
        except (RecursionError, MemoryError, OverflowError) as error:
            return _failure("broken", f"it needs too much ({type(error).__name__})")
        except Exception as error:  # whatever an untrusted program provokes
            return _failure("refused", str(error) or type(error).__name__)

    def _do(self, request: dict[str, Any]) -> dict[str, Any]:
        from safesteer_edge.templates.template_sandbox import TemplateSandbox

        if "source" in request:
            self._sandbox = TemplateSandbox(
                request["source"],
                special_tokens=request["special_tokens"],
                max_output=request["max_output"],
            )
            return {"text": ""}
        if self._sandbox is None:
            return _failure("broken", "it did not compile")
        text = self._sandbox.render(
            request["messages"],
            add_generation_prompt=request["add_generation_prompt"],
            variables=request["variables"],
        )
        return {"text": text}


def _failure(kind: str, message: str) -> dict[str, Any]:
    return {"kind": kind, "message": message[:500]}


def _warm_up(worker: _Worker) -> None:
    """Render once, so that all that jinja2 imports late is there before files are shut off."""
    used = "{{ strftime_now('%Y %B') ~ '%s' % '{:>4}'.format('x') ~ [1]|tojson }}"
    late = "{{ '<b>'|striptags ~ [1]|pprint ~ 'a b'|title|urlize ~ [1]|random ~ {'a': 1}|xmlattr }}"
    for source in (used, late, "{{ raise_exception('x') }}", "{% if"):
        worker.answer({"source": source, "special_tokens": {}, "max_output": 99})
        worker.answer({"messages": [], "add_generation_prompt": True, "variables": {}})


def _limit_next_request(render_s: float) -> None:
    """Have the process end by itself some time after the parent should have ended it."""
    if resource is None:
        # A C thread that needs no interpreter lock: works while one long C call holds it.
        faulthandler.dump_traceback_later(2 * render_s + 1, exit=True)
        return
    with contextlib.suppress(ValueError, OSError):
        hard_s = resource.getrlimit(resource.RLIMIT_CPU)[1]
        soft_s = math.ceil(time.process_time() + render_s + 1)
        resource.setrlimit(resource.RLIMIT_CPU, (soft_s, hard_s))


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(answer).encode("ascii") + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    """Serve requests until stdin ends."""
    options = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    sys.path += options["import_paths"]
    try:
        import safesteer_edge.templates.template_sandbox  # noqa: F401
        from safesteer_edge.processes.confined_worker import limit_resources
    except ImportError as error:
        _say(_failure("broken", str(error)))
        return
    _warm_up(_Worker())
    limit_resources(options["memory_bytes"])
    _say({"ready": True})
    worker = _Worker()
    for line in sys.stdin.buffer:
        _limit_next_request(options["render_s"])
        answer = worker.answer(json.loads(line))
        faulthandler.cancel_dump_traceback_later()
        _say(answer)


if __name__ == "__main__":
    main()
