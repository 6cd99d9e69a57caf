#!/usr/bin/env python3
"""Records what Python's jinja2 makes of chat templates, as transformers calls it: crates/engine/tests/data/templates.

    python tools/make_template_fixtures.py

Needs: jinja2 (3.1.6). `renderings.json` is committed. The templates beside it are written for these tests, after the
manner of the models that they are named for.
"""

import datetime
import json
from pathlib import Path

from jinja2.ext import LoopControlExtension as loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

FOLDER = Path(__file__).resolve().parent.parent / "crates/engine/tests/data/templates"
NOW = 1_735_689_599  # the last second of 2024

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather — today's, in <°C>",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Zürich", "A&B"]}}, "required": []},
    },
}
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2, "x": None}}}
say = lambda role, content, **more: {"role": role, "content": content, **more}
CONVERSATIONS = {
    "one": [say("user", "Hello")],
    "system": [say("system", "Be brief."), say("user", "  Hello there \n")],
    "turns": [
        say("system", "S"),
        say("user", "U1"),
        say("assistant", "A1"),
        say("user", "U2\nsecond line"),
        say("assistant", "A2"),
        say("user", "ü 中 👍🏽 <|im_end|>"),
    ],
    "thoughts": [
        say("user", "2+2?"),
        say("assistant", "<think>\nadd\n</think>\n\n4"),
        say("user", "sure?"),
        say("assistant", "<think>\nyes\n</think>\n\nYes"),
    ],
    "tools": [
        say("system", "S"),
        say("user", "Weather?"),
        say("assistant", "", tool_calls=[CALL]),
        say("tool", "12 °C"),
        say("tool", "rain"),
        say("assistant", "Cold."),
        say("user", "Thanks"),
    ],
    "parts": [say("user", [{"type": "image"}, {"type": "text", "text": " What is it? "}])],
    "same role twice": [say("user", "a"), say("user", "b")],
    "empty content": [say("user", "")],
    "no messages": [],
}


def raise_exception(message):
    raise ValueError(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def strftime_now(form):
    return datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc).strftime(form)


def main():
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    cases = []
    for path in sorted(FOLDER.glob("*.jinja")):
        template = environment.from_string(path.read_text())
        for name, messages in CONVERSATIONS.items():
            for tools in (None, [TOOL, TOOL["function"]]):
                variables = {"enable_thinking": False} if name == "one" and tools else {}
                case = {"template": path.stem, "conversation": name, "messages": messages, "variables": variables}
                case["add_generation_prompt"] = name not in ("thoughts", "empty content")
                case["tools"] = json.dumps(tools, ensure_ascii=False) if tools else None
                arguments = {k: case[k] for k in ("messages", "add_generation_prompt")} | variables
                try:
                    case["text"] = template.render(bos_token="<s>", eos_token="</s>", tools=tools, **arguments)
                except ValueError as error:
                    case["refused"] = str(error)
                except Exception as error:  # what Python's types do not allow
                    case["broken"] = str(error)
                cases.append(case)
    rows = ",\n".join(json.dumps(c, ensure_ascii=False, separators=(",", ":")) for c in cases)
    (FOLDER / "renderings.json").write_text('{"now": ' + str(NOW) + ', "cases": [\n' + rows + "\n]}\n")


if __name__ == "__main__":
    main()
