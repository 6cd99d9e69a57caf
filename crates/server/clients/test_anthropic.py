"""The `anthropic` package against a running server."""
import anthropic
import pytest

from conftest import KEY, LONG

# The package knows no temperature.
GREEDY = {"temperature": 0}
ASK = [{"role": "user", "content": "Say something."}]
TOOL = {
    "name": "get_weather",
    "description": "The weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Bern", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def client(server):
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=120)


def test_a_message(client, model):
    made = client.messages.create(model=model, max_tokens=12, messages=ASK, system="Be brief.", extra_body=GREEDY)
    assert made.role == "assistant" and made.stop_reason in ("end_turn", "max_tokens")
    assert all(block.type in ("text", "thinking") for block in made.content)
    assert made.usage.output_tokens <= 12 and made.usage.input_tokens > 0


def test_streaming_says_the_same(client, model):
    options = dict(model=model, max_tokens=16, messages=ASK, extra_body=GREEDY)
    whole = "".join(block.text for block in client.messages.create(**options).content if block.type == "text")
    with client.messages.stream(**options) as stream:
        assert "".join(stream.text_stream) == whole
        final = stream.get_final_message()
    assert final.stop_reason in ("end_turn", "max_tokens") and final.usage.output_tokens <= 16
    kinds = [event.type for event in client.messages.create(**options, stream=True) if event.type != "ping"]
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop")


def test_tokens_are_counted_as_they_are_used(client, model):
    counted = client.messages.count_tokens(model=model, messages=ASK, system="Be brief.")
    used = client.messages.create(model=model, max_tokens=1, messages=ASK, system="Be brief.").usage
    known = used.cache_read_input_tokens or 0
    assert counted.input_tokens == used.input_tokens + known


def test_a_tool_is_called(client, model):
    options = dict(model=model, max_tokens=400, messages=ASK, tools=[TOOL], tool_choice={"type": "tool", "name": "get_weather"})
    made = client.messages.create(**options, extra_body=GREEDY)
    assert made.stop_reason == "tool_use"
    call = [block for block in made.content if block.type == "tool_use"][0]
    assert call.name == "get_weather" and call.input["city"] in ("Bern", "Oslo")
    with client.messages.stream(**options, extra_body=GREEDY) as stream:
        streamed = [block for block in stream.get_final_message().content if block.type == "tool_use"][0]
    assert (streamed.name, streamed.input) == (call.name, call.input)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "rain"}
    said = call.model_dump(include={"type", "id", "name", "input"})
    messages = ASK + [{"role": "assistant", "content": [said]}, {"role": "user", "content": [result]}]
    assert client.messages.create(model=model, max_tokens=4, messages=messages, tools=[TOOL]).stop_reason


def test_stop_sequences(client, model):
    options = dict(model=model, max_tokens=30, messages=ASK, extra_body=GREEDY)
    text = "".join(block.text for block in client.messages.create(**options).content)
    stop = text[3:6]
    made = client.messages.create(**options, stop_sequences=[stop])
    assert made.stop_reason == "stop_sequence" and made.stop_sequence == stop
    assert "".join(block.text for block in made.content) == text[: text.index(stop)]


def test_errors_are_typed(client, guarded, model):
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="nobody", max_tokens=4, messages=ASK)
    with pytest.raises(anthropic.BadRequestError, match="nonsense"):
        client.messages.create(model=model, max_tokens=4, messages=ASK, extra_body={"nonsense": 1})
    with pytest.raises(anthropic.AuthenticationError):
        anthropic.Anthropic(base_url=guarded.url, api_key="wrong", max_retries=0).messages.count_tokens(model=model, messages=ASK)
    assert anthropic.Anthropic(base_url=guarded.url, api_key=KEY).messages.count_tokens(model=model, messages=ASK).input_tokens


def test_who_hangs_up_leaves_no_trace(client, server, model):
    with client.messages.stream(model=model, max_tokens=LONG, messages=ASK) as stream:
        next(iter(stream))
    server.idle()
