"""Tokenizers within bounds, and chat templates in a process of their own."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from mango.checkpoints import chat_templates, check_tokenizer, open_tokenizer, render_template, tokenizer_sha256
from mango.errors import CheckpointError, UnsafeFileError
from tests.robustness.cases import TOKENIZER, TOKENIZER_CONFIG


def write(folder: Path, change: dict[str, Any] | None = None, settings: dict[str, Any] | None = None) -> Path:
    document = copy.deepcopy(TOKENIZER)
    for key, value in (change or {}).items():
        (document["model"] if key in ("vocab", "merges") else document)[key] = value
    (folder / "tokenizer.json").write_text(json.dumps(document))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG | (settings or {})))
    return folder


def token(number: int, content: str | None = None) -> dict[str, Any]:
    return TOKENIZER["added_tokens"][0] | {"id": number, "content": content or f"<{number}>"}


def test_an_ordinary_tokenizer_opens(tmp_path: Path) -> None:
    assert open_tokenizer(write(tmp_path)).encode("abcd")
    assert len(check_tokenizer(tmp_path)) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"added_tokens": [token(i) for i in range(20, 300_020)]}, "at most"),
        ({"added_tokens": [token(14, "x"), token(14, "y")]}, "stands there twice"),
        ({"added_tokens": [token(14, "x"), token(15, "x")]}, "stands there twice"),
        ({"added_tokens": [token(3, "x")]}, "id 3 stands for 'd' and for 'x'"),
        ({"added_tokens": [token(99, "a")]}, "'a' has the ids 0 and 99"),
        ({"vocab": {"a": 1, "b": 1}, "merges": []}, "id 1 stands for 'a' and for 'b'"),
        ({"vocab": {"a": 10**9}, "merges": []}, "has the id '1000000000'"),
        ({"vocab": {"a": -1}, "merges": []}, "has the id '-1'"),
        ({"vocab": [["a", 0.0], ["b", 1e999]]}, "Infinity"),
        ({"vocab": {"a" * 20_000: 0}, "merges": []}, "no text of at most"),
        ({"padding": {"strategy": {"Fixed": 10**12}, "pad_id": 0}}, "padding.Fixed is 1000000000000"),
        ({"truncation": {"max_length": 10**12, "stride": 0}}, "truncation.max_length is"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 100}}, "101 steps"),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a*)*" * 2000}}}, "a pattern has 10000 characters"),
        ({"merges": [["a", "b", "c"]]}, "is no pair of tokens"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_tokenizer_beyond_any_real_one_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write(tmp_path, change)
    for opened in (open_tokenizer, tokenizer_sha256):
        with pytest.raises(CheckpointError, match=message) as caught:
            opened(tmp_path)
        assert "tokenizer.json" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"auto_map": {"AutoTokenizer": ["tokenization.T", None]}}, "auto_map chooses code"),
        ({"tokenizer_class": "os.path:join"}, "no name of a class"),
        ({"vocab_file": "/etc/passwd"}, "outside of the folder"),
        ({"tokenizer_file": "../../x.json"}, "outside of the folder"),
        ({"added_tokens_decoder": {"1": {"content": "x"}, "2": {"content": "x"}}}, "has two ids"),
        ({"added_tokens_decoder": {"-1": {"content": "x"}}}, "is no id"),
        ({"chat_template": "x" * 300_000}, "has 300000 characters"),
        ({"chat_template": [{"name": str(i), "template": ""} for i in range(100)]}, "more than 32 chat templates"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_settings_that_choose_code_or_lead_elsewhere_are_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_tokenizer(write(tmp_path, None, settings))


def test_a_regex_that_the_library_cannot_compile_is_told_in_one_line(tmp_path: Path) -> None:
    write(tmp_path, {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}})
    with pytest.raises(CheckpointError, match="transformers cannot open this tokenizer"):
        open_tokenizer(tmp_path)


CHATML = (
    "{%- for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim }}"
    "{% generation %}{{ '<|im_end|>' }}{% endgeneration %}{% if loop.last %}{% break %}{% endif %}{%- endfor %}"
    "{% if tools is not none %}{{ tools | tojson(indent=2) }}{% endif %}{{ bos_token }}"
)


def test_a_template_renders_as_transformers_renders_it(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": " Hi "}, {"role": "assistant", "content": "Hello"}]
    tokenizer = open_tokenizer(write(tmp_path))
    wanted = tokenizer.apply_chat_template(messages, chat_template=CHATML, tokenize=False, add_generation_prompt=True)
    assert render_template(CHATML, messages, tokens={"bos_token": "<s>"}) == wanted


LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{{ '' }}{% endfor %}{% endfor %}"
SWELL = "{% set ns = namespace(x='x') %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "error", "message"),
    [
        (LOOP, UnsafeFileError, "more than"),
        ("{{ 'x' * 10 ** 9 }}", UnsafeFileError, "memory|MiB|bytes"),
        (SWELL, UnsafeFileError, "memory|MiB"),
        ("{{ 'x' * 10 ** 7 }}", UnsafeFileError, "writes more than"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", UnsafeFileError, "what none may do"),
        ("{{ cycler.__init__.__globals__.os.system('id') }}", UnsafeFileError, "what none may do"),
        ("{{ raise_exception('no system role') }}", CheckpointError, "refuses the conversation: .*no system role"),
        ("{% for %}", CheckpointError, "is malformed"),
        ("{% include '/etc/passwd' %}", CheckpointError, "refuses the conversation"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_template_that_loops_swells_or_reaches_out_is_stopped(
    template: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        render_template(template, cpu_s=1)


def test_templates_are_found_wherever_a_model_keeps_them(tmp_path: Path) -> None:
    write(tmp_path, None, {"chat_template": [{"name": "tool_use", "template": "t"}]})
    (tmp_path / "chat_template.jinja").write_text("d")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("r")
    assert {name: text for name, (_, text) in chat_templates(tmp_path).items()} == {
        "tool_use": "t", "default": "d", "rag": "r"
    }  # fmt: skip
