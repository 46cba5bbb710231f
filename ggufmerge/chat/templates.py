"""Chat templates: the well-known formats by name, and the choice among those of the models.

Written for this project after the formats' descriptions (ChatML, the model cards of Llama 3, Mistral 7B, Alpaca and
EXAONE 3); llama.cpp recognizes all but Alpaca's in its built-in list, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

TEMPLATE = "tokenizer.chat_template"

_CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""

_LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}"""

# A system message stands before the first question. llama.cpp knows the format by the text ' [INST] ' + system_message.
_MISTRAL = """\
{{- bos_token -}}
{%- set state = namespace(open=false) -%}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{ ' ' + message['content'] + eos_token }}{%- set state.open = false -%}
{%- elif message['role'] == 'system' -%}
{%- set system_message = message['content'] -%}
{{ ' [INST] ' + system_message + '\\n\\n' }}{%- set state.open = true -%}
{%- else -%}
{{ ('' if state.open else ' [INST] ') + message['content'] + ' [/INST]' }}{%- set state.open = true -%}
{%- endif -%}
{%- endfor -%}"""

_ALPACA = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{ message['content'] + '\\n\\n' }}
{%- elif message['role'] == 'user' -%}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}
{%- else -%}{{ '### Response:\\n' + message['content'] + eos_token + '\\n\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '### Response:\\n' }}{%- endif -%}"""

_EXAONE = """\
{%- for message in messages -%}
{%- set content = message['content'] | trim -%}
{%- if message['role'] == 'user' -%}{{ '[|user|]' + content + '\\n' }}
{%- elif message['role'] == 'system' -%}{{ '[|system|]' + content + '[|endofturn|]\\n' }}
{%- else -%}{{ '[|assistant|]' + content + '[|endofturn|]\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '[|assistant|]' }}{%- endif -%}"""

TEMPLATES = {"alpaca": _ALPACA, "chatml": _CHATML, "exaone": _EXAONE, "llama3": _LLAMA3, "mistral": _MISTRAL}


def most_common(templates: Sequence[str | None]) -> int | None:
    """The first model that has the template most models have; None when none has one.

    templates: of each model, the base first, None where it has none.
    """
    counts = Counter(t for t in templates if t)
    return max(range(len(templates)), key=lambda i: counts[templates[i] or ""]) if counts else None
