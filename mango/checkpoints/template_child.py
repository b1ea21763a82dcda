"""Renders one chat template inside a limited process; started by `mango.checkpoints.templates`, never imported.

Reads JSON from its input (``template``, ``messages``, ``tokens``), writes JSON to its output: ``text``, or ``problem``
with its ``kind``. It imports nothing but Jinja and the standard library.
"""

import json
import resource
import sys
from typing import Any


def _limit(seconds: int, memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))


def _render(template: str, messages: list[Any], tokens: dict[str, Any]) -> dict[str, str]:
    from jinja2 import TemplateError
    from jinja2.exceptions import SecurityError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, **options: Any) -> str:
        known = ("ensure_ascii", "indent", "separators", "sort_keys")
        kept: dict[str, Any] = {key: options[key] for key in known if key in options}
        return json.dumps(value, **{"ensure_ascii": False, **kept})

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: "2000-01-01"
    try:
        compiled = environment.from_string(template)
    except (TemplateError, RecursionError, MemoryError) as error:
        return {"problem": f"{type(error).__name__}: {error}"[:300], "kind": "syntax"}
    try:
        text = compiled.render(messages=messages, add_generation_prompt=True, tools=None, documents=None, **tokens)
    except SecurityError as error:
        return {"problem": str(error)[:300], "kind": "unsafe"}
    except MemoryError:
        return {"problem": "it asks for more memory than it may have", "kind": "limit"}
    except Exception as error:  # noqa: BLE001  # whatever a template does wrong is told, not raised
        return {"problem": f"{type(error).__name__}: {error}"[:300], "kind": "refused"}
    return {"text": text}


def _generation() -> type:
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        """Lets ``{% generation %}`` stand, which marks what an assistant says."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser):  # type: ignore[no-untyped-def]
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    return Generation


if __name__ == "__main__":
    _Generation = _generation()
    _limit(int(sys.argv[1]), int(sys.argv[2]))
    given = json.load(sys.stdin)
    sys.stdout.write(json.dumps(_render(given["template"], given["messages"], given["tokens"])))
