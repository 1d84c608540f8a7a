"""A model for tests, made of the embedded one's weights: says little, always the same, and calls a tool."""

from typing import Any

from supervisor.embedded import MODEL

TALKER = "talker"
WEATHER = "Weather in Paris?"
FEW = {"temperature": 0, "seed": 7, "num_predict": 4}

SCHEMA = {"type": "object", "properties": {"warm": {"type": "boolean"}}, "required": ["warm"]}
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Say what the weather is like.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "where"}},
                "required": ["city"],
            },
        },
    }
]

CALL = '{"f":"weather","a":{"city":"Paris"}}'  # how it calls the tool

# Examples show a base model, which follows no instructions, how a tool is called. What Ollama reads of a template is
# `.Tools`, without which it refuses tools, and how `.ToolCalls` are written, which is how it finds them in an answer.
_TEMPLATE = """{{ if .Tools }}{{ .Tools }}
{{ end }}Question: Weather in Oslo?
Answer: {"f":"weather","a":{"city":"Oslo"}}

Question: Weather in Rome?
Answer: {"f":"weather","a":{"city":"Rome"}}

{{ range .Messages }}{{ if eq .Role "tool" }}Result: {{ .Content }}
{{ else if eq .Role "assistant" }}Answer: {{ .Content }}{{ range .ToolCalls }}{"f":"{{ .Function.Name }}",\
"a":{{ .Function.Arguments }}}{{ end }}
{{ else }}Question: {{ .Content }}
{{ end }}{{ end }}Answer:"""


def modelfile() -> str:
    """Return its Modelfile."""
    return (
        f'FROM {MODEL}\nTEMPLATE """{_TEMPLATE}"""\nPARAMETER stop "\n"\n'
        "PARAMETER temperature 0\nPARAMETER seed 7\nPARAMETER num_predict 20\n"
    )
