"""The `openai` package against a running server."""
import json
import threading

import openai
import pytest

from conftest import KEY, LONG

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Bern", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green"]},
        "sizes": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2},
    },
    "required": ["colour", "sizes"],
    "additionalProperties": False,
}
ASK = [{"role": "user", "content": "Say something."}]


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=120)


def test_models_are_listed(client, model):
    listed = client.models.list()
    assert [m.id for m in listed] == [model]
    assert client.models.retrieve(model).id == model


def test_chat_has_text_usage_and_a_reason(client, model):
    made = client.chat.completions.create(model=model, messages=ASK, max_tokens=12, seed=1)
    choice = made.choices[0]
    assert choice.message.role == "assistant" and choice.finish_reason in ("length", "stop")
    assert made.usage.completion_tokens <= 12 and made.usage.prompt_tokens > 0
    assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens


def test_streaming_says_the_same(client, model):
    options = dict(model=model, messages=ASK, max_tokens=24, seed=7, temperature=0.9)
    whole = client.chat.completions.create(**options)
    text, reasons, usage = "", [], None
    for chunk in client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reasons += [choice.finish_reason] if choice.finish_reason else []
        usage = chunk.usage or usage
    assert text == (whole.choices[0].message.content or "")
    assert reasons == [whole.choices[0].finish_reason]
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_neighbours_change_no_byte(client, model):
    def ask(seed):
        messages = [{"role": "user", "content": f"Number {seed}"}]
        made = client.chat.completions.create(model=model, messages=messages, max_tokens=20, seed=seed)
        return made.choices[0].message.content

    alone = [ask(seed) for seed in range(6)]
    together = [None] * 6
    threads = [threading.Thread(target=lambda i=i: together.__setitem__(i, ask(i))) for i in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert together == alone


def test_several_choices_differ_by_seed(client, model):
    made = client.chat.completions.create(model=model, messages=ASK, n=3, max_tokens=16, seed=5, temperature=1.0)
    assert [c.index for c in made.choices] == [0, 1, 2]
    assert len({c.message.content for c in made.choices}) > 1


def test_log_probabilities(client, model):
    made = client.chat.completions.create(model=model, messages=ASK, max_tokens=4, logprobs=True, top_logprobs=3, temperature=0)
    content = made.choices[0].logprobs.content
    assert len(content) == made.usage.completion_tokens
    for token in content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert token.logprob == max(t.logprob for t in token.top_logprobs)


def test_completions_stop_where_asked(client, model):
    free = client.completions.create(model=model, prompt="one two", max_tokens=30, temperature=0)
    text = free.choices[0].text
    assert len(text) > 4
    stop = text[3:5]
    cut = client.completions.create(model=model, prompt="one two", max_tokens=30, temperature=0, stop=stop)
    assert cut.choices[0].text == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_completions_stream(client, model):
    options = dict(model=model, prompt="one two", max_tokens=10, seed=2)
    whole = client.completions.create(**options).choices[0].text
    assert "".join(c.choices[0].text for c in client.completions.create(**options, stream=True) if c.choices) == whole


def test_a_schema_is_kept_by_a_model_that_knows_nothing(client, model):
    form = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True}}
    for seed in range(3):
        made = client.chat.completions.create(model=model, messages=ASK, response_format=form, max_tokens=400, seed=seed)
        assert made.choices[0].finish_reason == "stop"
        thing = json.loads(made.choices[0].message.content)
        assert thing["colour"] in ("red", "green") and 1 <= len(thing["sizes"]) <= 2


def test_a_required_tool_is_called(client, model):
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        made = client.chat.completions.create(model=model, messages=ASK, tools=[TOOL], tool_choice=choice, max_tokens=400, seed=1)
        assert made.choices[0].finish_reason == "tool_calls"
        call = made.choices[0].message.tool_calls[0]
        assert call.type == "function" and call.id and call.function.name == "get_weather"
        arguments = json.loads(call.function.arguments)
        assert arguments["city"] in ("Bern", "Oslo") and 1 <= arguments["days"] <= 9


def test_a_tool_call_streams_in_parts(client, model):
    options = dict(model=model, messages=ASK, tools=[TOOL], tool_choice="required", max_tokens=400, seed=1)
    whole = client.chat.completions.create(**options).choices[0].message.tool_calls[0]
    name, arguments = "", ""
    for chunk in client.chat.completions.create(**options, stream=True):
        for call in chunk.choices[0].delta.tool_calls or [] if chunk.choices else []:
            assert call.index == 0
            name += call.function.name or ""
            arguments += call.function.arguments or ""
    assert (name, arguments) == (whole.function.name, whole.function.arguments)


def test_a_conversation_with_tool_results_is_taken(client, model):
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Bern","days":2}'}}
    said = {"role": "assistant", "content": None, "tool_calls": [call]}
    messages = ASK + [said, {"role": "tool", "tool_call_id": "call_1", "content": "rain"}]
    options = dict(model=model, messages=messages, tools=[TOOL], tool_choice="none", max_tokens=4)
    assert client.chat.completions.create(**options).choices


def test_responses(client, model):
    options = dict(model=model, input="Say something.", max_output_tokens=12, temperature=0)
    made = client.responses.create(**options)
    assert made.status in ("completed", "incomplete") and made.usage.output_tokens <= 12
    kinds, text = [], ""
    for event in client.responses.create(**options, stream=True):
        kinds.append(event.type)
        text += event.delta if event.type == "response.output_text.delta" else ""
    assert kinds[0] == "response.created" and kinds[-1] in ("response.completed", "response.incomplete")
    assert text == made.output_text


def test_errors_are_typed(client, guarded, model):
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=ASK)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model=model, messages=ASK, temperature=-1)
    with pytest.raises(openai.BadRequestError, match="nonsense"):
        client.chat.completions.create(model=model, messages=ASK, extra_body={"nonsense": 1})
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "word " * 40000}])
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=guarded.url + "/v1", api_key="wrong", max_retries=0).models.list()
    assert openai.OpenAI(base_url=guarded.url + "/v1", api_key=KEY, max_retries=0).models.list().data


def test_who_hangs_up_leaves_no_trace(client, server, model):
    stream = client.chat.completions.create(model=model, messages=ASK, max_tokens=LONG, stream=True, logit_bias={"257": -100, "259": -100})
    next(iter(stream))
    stream.close()
    server.idle()
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).chat.completions.create(
            model=model, messages=ASK, max_tokens=LONG, logit_bias={"257": -100, "259": -100}
        )
    server.idle()


def test_embeddings_come_as_floats_and_in_base64(client, model):
    texts = ["a river", "a stone house", "a river"]
    # The package asks for base64 by itself.
    coded = client.embeddings.create(model=model, input=texts)
    floats = client.embeddings.create(model=model, input=texts, encoding_format="float")
    for one, other in zip(coded.data, floats.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-7)
    first, second, again = [one.embedding for one in coded.data]
    assert first == again and first != second and len(first) == 256
    assert sum(x * x for x in first) == pytest.approx(1, abs=1e-5)
    assert coded.usage.prompt_tokens > 6
    short = client.embeddings.create(model=model, input=texts[0], dimensions=8)
    assert len(short.data[0].embedding) == 8
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model=model, input="x", dimensions=257)
