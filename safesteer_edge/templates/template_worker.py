"""The child's side of rendering one untrusted chat template.

It answers each request with a text, or with {"refused" | "broken": message}. A render that
outlives the parent is ended by the timers here.
"""

from __future__ import annotations

import contextlib
import faulthandler
import math
import time
from typing import Any

from jinja2 import TemplateSyntaxError
from jinja2.exceptions import SecurityError

from safesteer_edge.templates.template_sandbox import TemplateSandbox, TooMuchOutputError

try:
    import resource
except ImportError:  # Windows
    resource = None

# All that jinja2 imports late is there after these, before files are shut off.
_WARM_UPS = (
    "{{ strftime_now('%Y %B') ~ '%s' % '{:>4}'.format('x') ~ [1]|tojson }}",
    "{{ '<b>'|striptags ~ [1]|pprint ~ 'a b'|title|urlize ~ [1]|random ~ {'a': 1}|xmlattr }}",
    "{{ lipsum(1) ~ 'a b'|wordwrap(2) }}",
    "{{ raise_exception('x') }}",
    "{% if",
)


class TemplateWorker:
    """Loads a template, then renders it with each request's messages."""

    def __init__(self, options: dict[str, Any]) -> None:
        """render_s: what the parent grants one request."""
        self._render_s: float = options["render_s"]
        self._sandbox: TemplateSandbox | None = None
        for source in _WARM_UPS:
            self._answer({"source": source, "special_tokens": {}, "max_output": 99})
            self._answer({"messages": [], "add_generation_prompt": True, "variables": {}})
        self._sandbox = None

    def __call__(self, request: dict[str, Any], _: bytes) -> tuple[dict[str, Any], bytes]:
        """Do one request; an exception of any kind is the template's, and becomes an answer."""
        self._limit_this_request()
        try:
            return self._answer(request)
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _answer(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        kind = "broken"
        try:
            return {}, self._text(request).encode("utf-8", "surrogatepass")
        except TemplateSyntaxError as error:
            message = f"syntax error in line {error.lineno}: {error.message}"
        except (SecurityError, TooMuchOutputError) as error:
            message = str(error)
        except (RecursionError, MemoryError, OverflowError) as error:
            message = f"it needs too much ({type(error).__name__})"
        except Exception as error:  # whatever an untrusted program provokes
            kind, message = "refused", str(error) or type(error).__name__
        return {kind: message[:500]}, b""

    def _text(self, request: dict[str, Any]) -> str:
        if "source" in request:
            self._sandbox = TemplateSandbox(
                request["source"],
                special_tokens=request["special_tokens"],
                max_output=request["max_output"],
            )
            return ""
        if self._sandbox is None:
            raise SecurityError("it did not compile")
        return self._sandbox.render(
            request["messages"],
            add_generation_prompt=request["add_generation_prompt"],
            variables=request["variables"],
        )

    def _limit_this_request(self) -> None:
        """Have the process end by itself some time after the parent should have ended it."""
        if resource is None:
            # A C thread that needs no interpreter lock: works while one long C call holds it.
            faulthandler.dump_traceback_later(2 * self._render_s + 1, exit=True)
            return
        with contextlib.suppress(ValueError, OSError):
            hard_s = resource.getrlimit(resource.RLIMIT_CPU)[1]
            soft_s = math.ceil(time.process_time() + self._render_s + 1)
            resource.setrlimit(resource.RLIMIT_CPU, (soft_s, hard_s))
