"""The chat templates that need no model: published formats, written in Jinja so that a saved model can carry its own.

Jinja as transformers reads it; `bos_token` and `eos_token` are the tokenizer's, the first possibly undefined.
"""

from __future__ import annotations

from typing import NamedTuple


class OwnTemplate(NamedTuple):
    """A template; the control tokens without which it would be mere text; whether it strips what messages say."""

    source: str
    needs: tuple[str, ...] = ()
    strips: bool = False


_CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

_LLAMA3 = """\
{{- '<|begin_of_text|>' }}
{%- for message in messages -%}
{%- set role = 'ipython' if message['role'] == 'tool' else message['role'] -%}
{{ '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}
"""

_LLAMA2 = """\
{%- set ns = namespace(system='') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- set ns.system = '<<SYS>>\\n' + message['content'] | trim + '\\n<</SYS>>\\n\\n' -%}
{%- elif message['role'] == 'user' -%}
{{ (bos_token or '') + '[INST] ' + ns.system + message['content'] | trim + ' [/INST]' }}
{%- set ns.system = '' -%}
{%- elif message['role'] == 'assistant' -%}
{{ ' ' + message['content'] | trim + ' ' + eos_token }}
{%- else -%}
{{ raise_exception('the format llama2 has no place for what a tool says') }}
{%- endif -%}
{%- endfor -%}
"""

_MISTRAL = """\
{{- bos_token or '' }}
{%- set ns = namespace(system='') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- set ns.system = message['content'] + '\\n\\n' -%}
{%- elif message['role'] == 'user' -%}
{{ '[INST] ' + ns.system + message['content'] + 'CLOSE' }}
{%- set ns.system = '' -%}
{%- elif message['role'] == 'assistant' -%}
{{ ' ' + message['content'] + eos_token }}
{%- else -%}
{{ raise_exception('the format mistral has no place for what a tool says') }}
{%- endif -%}
{%- endfor -%}
"""

_ALPACA = """\
{{- bos_token or '' }}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{{ message['content'] + '\\n\\n' }}
{%- elif message['role'] == 'user' -%}
{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}
{%- elif message['role'] == 'assistant' -%}
{{ '### Response:\\n' + message['content'] + eos_token + ('' if loop.last else '\\n\\n') }}
{%- else -%}
{{ raise_exception('the format alpaca has no place for what a tool says') }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '### Response:\\n' }}{%- endif -%}
"""

_PLAIN = """\
{{- bos_token or '' }}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{{ message['content'] + '\\n\\n' }}
{%- elif message['role'] == 'assistant' -%}
{{ 'Assistant: ' + message['content'] + eos_token + ('' if loop.last else '\\n\\n') }}
{%- else -%}
{{ message['role'] | capitalize + ': ' + message['content'] + '\\n\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}
"""

TEMPLATES: dict[str, tuple[OwnTemplate, ...]] = {
    "chatml": (OwnTemplate(_CHATML, ("<|im_start|>", "<|im_end|>")),),
    "llama3": (
        OwnTemplate(_LLAMA3, ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), strips=True),
    ),
    "llama2": (OwnTemplate(_LLAMA2, strips=True),),
    "mistral": (  # version 3 of the format, where [INST] is a token; else version 1, where it is text
        OwnTemplate(_MISTRAL.replace("CLOSE", "[/INST]"), ("[INST]", "[/INST]")),
        OwnTemplate(_MISTRAL.replace("CLOSE", " [/INST]")),
    ),
    "alpaca": (OwnTemplate(_ALPACA),),
    "plain": (OwnTemplate(_PLAIN),),
}
"""Name → the forms of the format; the first for which the tokenizer has the tokens is used."""
