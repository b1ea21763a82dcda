"""Chat templates that documents may name, and the choice among those of the models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from mango.config import near
from mango.errors import MergeError
from mango.merging.inputs import Input

_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_ALPACA = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}\n\n"
    "{% elif message['role'] == 'user' %}### Instruction:\n{{ message['content'] }}\n\n"
    "{% else %}### Response:\n{{ message['content'] }}{{ eos_token }}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)
_LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ message['content'] }}{{ eos_token }}"
    "{% elif message['role'] == 'system' %}[INST] {{ message['content'] }} [/INST]"
    "{% else %}[INST] {{ message['content'] }} [/INST]{% endif %}{% endfor %}"
)
_EXAONE = (
    "{% for message in messages %}[|{{ message['role'] }}|]{{ message['content'] }}"
    "{% if message['role'] == 'user' %}\n{% else %}[|endofturn|]\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[|assistant|]{% endif %}"
)
TEMPLATES = {"alpaca": _ALPACA, "chatml": _CHATML, "exaone": _EXAONE, "llama3": _LLAMA3, "mistral": _MISTRAL}


def choose_template(word: str, inputs: Mapping[str, Input]) -> str | None:
    """Return the chat template that a document asks for.

    Args:
        word: ``auto`` for the one that most models have (of equally many, the first), a known name, or a template.
        inputs: the models by key.

    Returns:
        A Jinja template; None where ``auto`` finds none.

    Raises:
        MergeError: it is neither of these.
    """
    if word == "auto":
        found = [m.vocabulary.template() for m in inputs.values() if m.vocabulary is not None]
        counted = Counter(template.strip() for template in found if template)
        return max(counted, key=counted.__getitem__) if counted else None
    if word in TEMPLATES:
        return TEMPLATES[word]
    if "{" not in word:
        hint = near(word, ("auto", *TEMPLATES)) or "."
        known = ", ".join(("auto", *TEMPLATES))
        raise MergeError(f"chat_template: {word!r} is neither a known name nor a Jinja template{hint} Known: {known}")
    return word
