"""Chat templates in the manner of the models that people compile, and conversations for them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from backends.mnn.chat.conversations import CONVERSATIONS

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

CHATML = """\
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{% endif %}
"""

QWEN25 = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are a helpful assistant.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n\\nSignatures are in <tools></tools>:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n\\nAnswer with {\\"name\\": ..., \\"arguments\\": ...} in <tool_call></tool_call>.<|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first)
           or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.index0 == 0 or messages[loop.index0 - 1].role != "tool" %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

QWEN3 = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{#- the last question of the user, not an answer of a tool #}
{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string
           and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n')
                    + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\\n' }}
                {%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

LLAMA3 = """\
{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{#- the system prompt stands in front #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none and not tools_in_user_message %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- if tools_in_user_message and not tools is none %}
    {%- if messages | length != 0 %}
        {%- set first_user_message = messages[0]['content']|trim %}
        {%- set messages = messages[1:] %}
    {%- else %}
        {{- raise_exception("tools need a first user message") }}
    {%- endif %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\n' -}}
    {{- "Given these functions, answer with a call.\\n\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
    {{- first_user_message + "<|eot_id|>"}}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("one call at a time") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("only user and assistant") }}
    {%- endif %}
{%- endfor %}
"""

DEEPSEEK_R1 = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='') %}"
    "{%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}"
    "{%- endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<｜User｜>' + message['content']}}{%- endif %}"
    "{%- if message['role'] == 'assistant' and message['content'] is not none %}"
    "{%- if ns.is_tool %}{{'<｜tool▁outputs▁end｜>' + message['content'] + eos_token}}{%- set ns.is_tool = false -%}"
    "{%- else %}{% set content = message['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{'<｜Assistant｜>' + content + eos_token}}{%- endif %}{%- endif %}"
    "{%- if message['role'] == 'tool' %}{%- set ns.is_tool = true -%}"
    "{%- if ns.is_output_first %}{{'<｜tool▁outputs▁begin｜>' + message['content']}}{%- set ns.is_output_first = false %}"
    "{%- else %}{{'\\n' + message['content']}}{%- endif %}{%- endif %}{%- endfor -%}"
    "{% if ns.is_tool %}{{'<｜tool▁outputs▁end｜>'}}{% endif %}"
    "{% if add_generation_prompt and not ns.is_tool %}{{'<｜Assistant｜><think>\\n'}}{% endif %}"
)

GEMMA = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\\n'}}
{%- endif -%}
"""

TEMPLATES: Mapping[str, str] = {
    "chatml": CHATML,
    "qwen2.5": QWEN25,
    "qwen3": QWEN3,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "deepseek-r1": DEEPSEEK_R1,
    "gemma": GEMMA,
}


@dataclass(frozen=True)
class Construct:
    """One thing that templates do.

    Attributes:
        source: a template that does it.
        rule: the rule that rewrites it.
        broken: generations of releases that render the original otherwise.
    """

    source: str
    rule: str
    broken: tuple[str, ...]


BOTH, NEW, OLD = ("3.4", "3.5"), ("3.5",), ("3.4",)

_EACH = "{% for m in messages %}BODY|{% endfor %}"


def _each(body: str, rule: str, broken: tuple[str, ...]) -> Construct:
    return Construct(_EACH.replace("BODY", body), rule, broken)


CONSTRUCTS: Mapping[str, Construct] = {
    "first content": _each("{{ m.content }}", "roles of messages", OLD),
    "a role by default": _each("[{{ m.name | default(m.role) }}] {{ m.content }}", "default", NEW),
    "a default for what is empty": _each("{{ m.content | default('nothing', true) }}", "default", NEW),
    "a default by its short name": _each("{{ m['name'] | d('x') }}{{ m.content }}", "default", NEW),
    "get": _each("{{ m.get('name', m.role) }}{{ m.get('content') }}", "get", NEW),
    "reasoning cut off": _each(
        "{% if '</think>' in m.content %}{{ m.content.split('</think>')[-1].lstrip('\\n') }}{% else %}{{ m.content }}{% endif %}",
        "in",
        OLD,
    ),
    "not in": _each("{% if '</think>' not in m.content %}{{ m.content }}{% endif %}", "in", OLD),
    "a key of an object": _each("{% if 'content' in m and 'nothing' not in m %}{{ m.content }}{% endif %}", "in", OLD),
    "one of a list": _each("{{ m.content if m.role in ['user', 'tool'] else 'other' }}", "roles of messages", OLD),
    "values of or": _each("{{ m.name or m.content or 'nothing' }}", "a value of and, or", NEW),
    "values of and": _each("{{ m.content and m.role }}", "a value of and, or", BOTH),
    "order of integers": _each(
        "{% if loop.index0 > 1 or loop.index <= 1 %}{{ m.content }}{% endif %}", "order of integers", OLD
    ),
    "a length": Construct(
        "{% if messages|length > 1 %}{{ messages[0].content }}{% endif %}{% if messages|length < 3 %}few{% endif %}",
        "order of integers",
        OLD,
    ),
    "truth of a length": _each(
        "{% if m.content|length %}{{ m.content }}{% else %}empty{% endif %}", "truth of an integer", OLD
    ),
    "remainders": _each("{{ 'even' if loop.index0 % 2 == 0 else 'odd' }}{{ m.content }}", "remainders", NEW),
    "divisible": _each("{{ 'yes' if loop.index is divisibleby(3) else 'no' }}{{ m.content }}", "remainders", BOTH),
    "members of a sum": _each(
        "{{ (m.role ~ ' ' ~ m.content).split(' ')[0] }}{{ m.content }}", "members of a value without name", NEW
    ),
    "a slice of a filter": _each("{{ (m.content | trim).startswith('What') }}", "members of a value without name", NEW),
    "join": _each("{{ m.content.split(' ') | join('_') }}", "join", NEW),
    "join of a text": _each("{{ '-'.join(m.content.split(' ')) }}", "join", BOTH),
    "replace": _each("{{ m.content.replace('a', 'bb') }}{{ m.content | replace('e', '') }}", "replace", BOTH),
    "first and last": _each("{{ (m.content.split(' ') | first) ~ (m.content.split(' ') | last) }}", "first", BOTH),
    "reverse": Construct("{% for m in messages | reverse %}{{ m.content }}|{% endfor %}", "reverse", BOTH),
    "selectattr": Construct(
        "{% for m in messages | selectattr('role', 'equalto', 'user') | list %}{{ m.content }}|{% endfor %}",
        "selectattr",
        NEW,
    ),
    "rejectattr": Construct(
        "{% for m in messages | rejectattr('role', 'in', ['system', 'tool']) %}{{ m.content }}|{% endfor %}",
        "rejectattr",
        NEW,
    ),
    "split once": _each("{{ m.content.split('\\n', 1)[1] if '\\n' in m.content else m.content }}", "split once", BOTH),
    "split once from the right": _each("{{ m.content.rsplit('\\n', 1)[-1] }}", "rsplit once", BOTH),
    "partition": _each("{{ m.content.partition('\\n')[2] }}", "partition once", BOTH),
    "capitals": _each("{{ m.role.upper() }}{{ m.content }}", "upper", BOTH),
    "trim of letters": _each("{{ m.content | trim('?') }}", "trim of letters", BOTH),
    "if without else": _each("{{ 'first ' if loop.first }}{{ m.content }}", "if without else", NEW),
    "is iterable": Construct(
        "{% for m in messages %}{% if m is iterable %}{{ m.content }}{% endif %}|{% endfor %}",
        "is iterable",
        NEW,
    ),
    "is sequence": _each("{{ 'text ' if m.content is sequence else '' }}{{ m.content }}", "is sequence", OLD),
    "is undefined": _each("{{ 'none ' if m.nothing is undefined else '' }}{{ m.content }}", "is undefined", OLD),
    "a key that may be missing": _each(
        "{% if m['nothing'] is defined %}there{% endif %}{{ m['content'] }}", "a key that may be missing", NEW
    ),
    "tests that compare": _each(
        "{{ 'ask ' if m.role is equalto('user') else '' }}{{ m.content }}", "tests that compare", BOTH
    ),
    "tools that are none": Construct(
        "{% if tools is not none %}tools{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}",
        "tools is none",
        NEW,
    ),
    "json of a text": _each("{{ m.content | tojson }}", "tojson", OLD),
    "items": _each("{% for k, v in {'a': m.content}.items() %}{{ k }}={{ v }}{% endfor %}", "items", NEW),
    "defaults of a macro": Construct(
        "{% macro turn(text, end='!') %}{{ text }}{{ end }}{% endmacro %}"
        "{% for m in messages %}{{ turn(m.content) }}{{ turn(m.role, end='?') }}{% endfor %}",
        "defaults of a macro",
        NEW,
    ),
    "set of a block": _each("{% set text %}<{{ m.role }}>{% endset %}{{ m.content }}{{ text }}", "set of a block", NEW),
    "names set at once": _each("{% set a, b = m.role, m.content %}{{ a }}: {{ b }}", "several names set at once", BOTH),
    "else of a loop": Construct(
        "{% for m in messages %}{{ m.content }}{% endfor %}{% for x in [] %}x{% else %}empty{% endfor %}",
        "else of a loop",
        NEW,
    ),
    "continue": _each("{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content }}", "continue", NEW),
    "continue inside of conditions": _each(
        "{% if m.role != 'user' %}{% if m.role == 'system' %}<{{ m.content }}>{% continue %}{% else %}-{% endif %}+{% endif %}"
        "{% set text = m.content %}{% if not text %}{% continue %}{% endif %}{{ text }}",
        "continue",
        NEW,
    ),
    "break": Construct(
        "{% for m in messages %}{{ m.content }}|{% if m.role == 'assistant' %}{% if m.content %}{% break %}{% endif %}{% endif %}"
        "{{ m.role }}{% endfor %}{{ messages|length }}",
        "break",
        NEW,
    ),
    "a begin that is cut off": _each(
        "{% if m.content.startswith('<think>') %}{{ m.content[7:].strip() }}{% else %}{{ m.content }}{% endif %}",
        "a begin or end that is cut off",
        BOTH,
    ),
    "an end that is cut off": _each(
        "{% if m.content.endswith('?') %}{% set text = m.content[:-1] %}{{ text }}{% else %}{{ m.content }}{% endif %}",
        "a begin or end that is cut off",
        BOTH,
    ),
    "separators of JSON": _each("{{ [m.role, {'a': m.content}] | tojson(separators=(',', ':')) }}", "tojson", BOTH),
    "JSON that is left open": _each(
        "{% set out = {'role': m.role, 'text': m.content} | tojson %}{{ out[:-1] }}, 1}",
        "JSON that is left open",
        BOTH,
    ),
    "neighbours": _each(
        "{% if loop.previtem is defined and loop.previtem.role == m.role %}again {% endif %}{{ m.content }}",
        "loop.previtem",
        NEW,
    ),
    "from behind": _each("{{ loop.revindex }}{{ loop.revindex0 }}{{ m.content }}", "loop.revindex", NEW),
    "comments": Construct(
        "A\n{# one #}\n  {# two #}\nB{% for m in messages %}{{ m.content }}{% endfor %}", "comments", NEW
    ),
    "line break at the end": Construct(
        "{% for m in messages %}{{ m.content }}{% endfor %}end\n", "line break at the end", NEW
    ),
    "generation": _each("{% generation %}{{ m.content }}{% endgeneration %}", "roles of messages", OLD),
    "functions that are there": _each(
        "{% if strftime_now is not defined %}old{% endif %}{{ m.content }}", "functions that are always there", OLD
    ),
    "chains of comparisons": _each(
        "{{ 'low ' if 0 <= loop.index0 < 2 else '' }}{{ m.content }}", "chains of comparisons", OLD
    ),
}


def leave(request: object) -> None:
    """What a child does that dies."""
    os._exit(7)


__all__ = ["CONSTRUCTS", "CONVERSATIONS", "TEMPLATES", "TOKENS", "leave"]
