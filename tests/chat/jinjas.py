"""Chat templates as models bring them, in the shapes that are common: written for these tests after the formats' own
descriptions (model cards, `apply_chat_template` of transformers).
"""

from __future__ import annotations

from pathlib import Path

from ggufmerge.chat.formats import ChatFormat
from ggufmerge.chat.of_file import chat_format
from ggufmerge.chat.templates import TEMPLATES
from ggufmerge.files import open_gguf
from tests.tiny import write_tiny_llama

_CHATML_WITH_DEFAULT = """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named Tiny<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

_CHATML_TOOLS = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' + message.content }}
        {%- for call in message.tool_calls or [] %}{{- '\\n<tool_call>' + call | tojson + '</tool_call>' }}{%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

_LLAMA31 = """\
{{- bos_token }}
{%- set day = strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = '' %}{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{{- 'Cutting Knowledge Date: December 2023\\nToday Date: ' + day + '\\n\\n' + system_message + '<|eot_id|>' }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

_GEMMA = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}{%- set loop_messages = messages[1:] -%}
{%- else -%}{%- set first_user_prefix = '' -%}{%- set loop_messages = messages -%}{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('roles must alternate') }}
    {%- endif -%}
    {{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' }}
    {{- (first_user_prefix if loop.first else '') + message['content'] | trim }}{{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"""

_GEMMA_WITHOUT_SYSTEM = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
{% for message in messages %}{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role'])
 + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"""

_MISTRAL_SYSTEM_LAST = """\
{%- if messages[0].role == 'system' %}
    {%- set system_message = messages[0].content %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set loop_messages = messages %}{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message.role == 'user' %}
        {%- if loop.last and system_message is defined %}
            {{- '[INST] ' + system_message + '\\n\\n' + message.content + '[/INST]' }}
        {%- else %}{{- '[INST] ' + message.content + '[/INST]' }}{%- endif %}
    {%- else %}{{- ' ' + message.content + eos_token }}{%- endif %}
{%- endfor %}"""

_LLAMA2 = """\
{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system_message = messages[0]['content'] %}\
{% else %}{% set rest = messages %}{% set system_message = false %}{% endif %}{% for message in rest %}\
{% if loop.first and system_message %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' \
+ message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}\
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}\
{% else %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""

_PHI3 = """\
{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}
{{'<|user|>' + '\\n' + message['content'] + '<|end|>' + '\\n' + '<|assistant|>' + '\\n'}}
{%- elif message['role'] == 'assistant' %}
{{message['content'] + '<|end|>' + '\\n'}}
{%- endif %}{% endfor %}"""

_ZEPHYR = """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""

_VICUNA = """\
{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + ' ' }}{% set messages = messages[1:] %}{% else %}\
{{ 'A chat between a curious user and an artificial intelligence assistant. ' }}{% endif %}\
{% for message in messages %}{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}\
{% else %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""

_COMMAND_R = """\
{{ bos_token }}{% for message in messages %}{{ '<|START_OF_TURN_TOKEN|>' }}{% if message['role'] == 'system' %}\
{{ '<|SYSTEM_TOKEN|>' + message['content'] }}{% elif message['role'] == 'user' %}{{ '<|USER_TOKEN|>' + \
message['content'].strip() }}{% else %}{{ '<|CHATBOT_TOKEN|>' + message['content'].strip() }}{% endif %}\
{{ '<|END_OF_TURN_TOKEN|>' }}{% endfor %}{% if add_generation_prompt %}\
{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"""

_THINKING = """\
{%- for message in messages %}
    {%- set content = message.content.split('</think>')[-1] if message.role == 'assistant' else message.content %}
    {{- {'system': '', 'user': '<｜User｜>', 'assistant': '<｜Assistant｜>'}[message.role] + content }}
    {%- if message.role == 'assistant' %}{{- '<｜end▁of▁sentence｜>' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<｜Assistant｜>' + ('<think>\\n' if enable_thinking else '</think>') }}
{%- endif %}"""

_BRACES = """\
{% for message in messages %}{{ '{{' + message['role'] + '}} {' + message['content'] + '{end}\u00a0' }}{% endfor %}\
{% if add_generation_prompt %}{{ '{{assistant}} {' }}{% endif %}"""

JINJAS = {
    **TEMPLATES,
    "chatml with default": _CHATML_WITH_DEFAULT,
    "chatml with tools": _CHATML_TOOLS,
    "llama 3.1": _LLAMA31,
    "gemma": _GEMMA,
    "gemma without system": _GEMMA_WITHOUT_SYSTEM,
    "mistral, system last": _MISTRAL_SYSTEM_LAST,
    "llama 2": _LLAMA2,
    "phi 3": _PHI3,
    "zephyr": _ZEPHYR,
    "vicuna": _VICUNA,
    "command r": _COMMAND_R,
    "thinking": _THINKING,
    "braces": _BRACES,
}


def write_model(path: Path, name: str) -> ChatFormat:
    """A tiny model with the template of this name; gives the format that the program finds in it."""
    metadata = {"tokenizer.chat_template": JINJAS[name], "tokenizer.ggml.add_bos_token": True}
    write_tiny_llama(path, layers=1, embed=32, ff=32, tokenizer="bpe", metadata=metadata)
    with open_gguf(path) as file:
        form = chat_format(file.metadata)
    assert form is not None
    return form
