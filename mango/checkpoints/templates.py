"""Chat templates: programs that a model brings along. They are found, bounded, and run in a limited process only."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mango.checkpoints.documents import read_bytes, read_json, shown
from mango.checkpoints.names import check_inside
from mango.checkpoints.tokenizer_rules import CONFIG_BOUNDS, TOKENIZER_CONFIG
from mango.errors import CheckpointError, UnsafeFileError

MAX_TEMPLATE_BYTES = 256 << 10
MAX_TEMPLATES = 32
MAX_OUTPUT_BYTES = 8 << 20
CPU_S = 2
WALL_S = 20.0
MEMORY_BYTES = 512 << 20
SAMPLE = (
    {"role": "user", "content": "What is a mango?"},
    {"role": "assistant", "content": "A fruit."},
    {"role": "user", "content": "Thank you."},
)
"""The conversation that a template is tried on."""

_CHILD = Path(__file__).with_name("template_child.py")


def chat_templates(folder: Path | str) -> dict[str, tuple[Path, str]]:
    """Return the chat templates of a model folder, by name, each with the file that holds it.

    Raises:
        CheckpointError: a file cannot be read, or holds no template where one should be.
        UnsafeFileError: there are more templates than any real model has, or one is larger.
    """
    folder = Path(folder)
    found: dict[str, tuple[Path, Any]] = {}
    config = folder / TOKENIZER_CONFIG
    if config.is_file():
        given = read_json(check_inside(config, folder), CONFIG_BOUNDS).get("chat_template")
        if isinstance(given, list):
            if not all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in given):
                raise CheckpointError(f"{config}: chat_template: wanted text, or a list of names and templates")
            found |= {one["name"]: (config, one.get("template")) for one in given}
        elif given is not None:
            found["default"] = (config, given)
    old = folder / "chat_template.json"
    if old.is_file():
        found["default"] = (old, read_json(check_inside(old, folder), CONFIG_BOUNDS).get("chat_template"))
    files = [folder / "chat_template.jinja", *sorted((folder / "additional_chat_templates").glob("*.jinja"))]
    for path in files[: MAX_TEMPLATES + 1]:
        if path.is_file():
            name = "default" if path.parent == folder else path.stem
            content = read_bytes(check_inside(path, folder), MAX_TEMPLATE_BYTES)
            found[name] = (path, content.decode("utf-8", "replace"))
    if len(found) > MAX_TEMPLATES:
        raise UnsafeFileError(f"{folder}: holds more than {MAX_TEMPLATES} chat templates")
    for name, (path, template) in found.items():
        if not isinstance(template, str):
            raise CheckpointError(f"{path}: the chat template {shown(name)} is no text")
        if len(template) > MAX_TEMPLATE_BYTES:
            raise UnsafeFileError(
                f"{path}: the chat template {shown(name)} has {len(template)} characters; "
                f"at most {MAX_TEMPLATE_BYTES} are read"
            )
    return found


def render_template(
    template: str,
    messages: Sequence[Mapping[str, Any]] = SAMPLE,
    *,
    tokens: Mapping[str, str] | None = None,
    where: object = "chat template",
    cpu_s: int = CPU_S,
) -> str:
    """Render a chat template as transformers does, in a process with limits on time, memory and output.

    The process gets no environment, may write no file, and ends after ``cpu_s`` seconds of work.

    Args:
        template: Jinja source.
        messages: the conversation.
        tokens: special tokens by name, such as ``bos_token``.
        where: the file, for messages.
        cpu_s: seconds of processor time that it may take.

    Raises:
        CheckpointError: the template is malformed, or refuses the conversation.
        UnsafeFileError: it does not end, asks for too much memory, writes too much, or reaches for what it must not.
    """
    command = [sys.executable, "-I", str(_CHILD), str(cpu_s), str(MEMORY_BYTES)]
    given = {"template": template, "messages": list(messages), "tokens": dict(tokens or {})}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={}, cwd="/"
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        clock = threading.Timer(WALL_S, child.kill)
        clock.start()
        output = b""
        try:
            child.stdin.write(json.dumps(given).encode())  # the child reads all of it before it writes
            child.stdin.close()
            output = child.stdout.read(MAX_OUTPUT_BYTES + 1)
        except BrokenPipeError:
            pass  # it ended before it read: its return code says so
        finally:
            clock.cancel()
            if len(output) > MAX_OUTPUT_BYTES:
                child.kill()
    if len(output) > MAX_OUTPUT_BYTES:
        raise UnsafeFileError(
            f"{where}: the chat template writes more than {MAX_OUTPUT_BYTES} bytes for {len(messages)} messages"
        )
    if child.returncode or not output:
        raise UnsafeFileError(
            f"{where}: the chat template takes more than {cpu_s} s or {MEMORY_BYTES >> 20} MiB for "
            f"{len(messages)} short messages; remove it"
        )
    result = json.loads(output)
    if "text" in result:
        return str(result["text"])
    if result["kind"] in ("unsafe", "limit"):
        raise UnsafeFileError(f"{where}: the chat template does what none may do: {result['problem']}")
    what = "is malformed" if result["kind"] == "syntax" else "refuses the conversation"
    raise CheckpointError(f"{where}: the chat template {what}: {result['problem']}")
