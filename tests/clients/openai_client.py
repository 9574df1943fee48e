"""Asks a running `bayan serve` with the official `openai` package, as its users do.

    python openai_client.py http://127.0.0.1:8080/v1 [KEY]

Every check fails loudly; the last line counts them. The package is unmodified and has default settings.
"""

import json
import sys

import openai

import checks
from checks import check


def main(url, key):
    client = openai.OpenAI(base_url=url, api_key=key)
    models = [model.id for model in client.models.list()]
    check(f"models.list gives {models}", len(models) == 1)
    model = models[0]
    check("models.retrieve", client.models.retrieve(model).id == model)

    question = [{"role": "user", "content": "السلام عليكم"}]
    common = {"model": model, "messages": question, "temperature": 0, "max_tokens": 40}
    whole = client.chat.completions.create(**common)
    text = whole.choices[0].message.content
    check(f"a chat is answered: {text}", bool(text) and whole.choices[0].finish_reason in ("stop", "length"))
    check("usage adds up", whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens)

    stream = client.chat.completions.create(**common, stream=True, stream_options={"include_usage": True})
    pieces, usage = [], None
    for chunk in stream:
        usage = chunk.usage or usage
        pieces += [choice.delta.content or "" for choice in chunk.choices]
    check(f"a stream of {len(pieces)} pieces is the same text", "".join(pieces) == text)
    check("the stream's usage is the same", usage.completion_tokens == whole.usage.completion_tokens)

    with client.chat.completions.stream(**common) as events:
        final = events.get_final_completion()
    check("the stream helper collects the same text", final.choices[0].message.content == text)

    many = client.chat.completions.create(**{**common, "temperature": 1.2}, n=3, seed=7, logprobs=True, top_logprobs=2)
    check("three choices", [choice.index for choice in many.choices] == [0, 1, 2])
    content = many.choices[0].logprobs.content
    check("log-probabilities with two alternatives", content and all(len(e.top_logprobs) == 2 for e in content))
    again = client.chat.completions.create(**{**common, "temperature": 1.2}, n=3, seed=7)
    texts = [choice.message.content for choice in many.choices]
    check("the same seed gives the same choices", texts == [choice.message.content for choice in again.choices])

    stop = text[4:7]
    stopped = client.chat.completions.create(**common, stop=[stop])
    check(f"the text {stop!r} ends the answer", stopped.choices[0].message.content == text.split(stop)[0])

    plain = client.completions.create(model=model, prompt="عاصمة فرنسا", max_tokens=4, temperature=0, echo=True,
                                      logprobs=1)
    scores = plain.choices[0].logprobs
    check("completions echo the prompt", plain.choices[0].text.startswith("عاصمة فرنسا"))
    check("the prompt is scored", scores.token_logprobs[0] is None and all(p <= 0 for p in scores.token_logprobs[1:]))

    schema = {"type": "object", "properties": {"city": {"enum": ["القاهرة", "دمشق"]}, "hot": {"type": "boolean"}},
              "required": ["city", "hot"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "weather", "schema": schema, "strict": True}}
    structured = client.chat.completions.create(**{**common, "max_tokens": 400}, response_format=form)
    value = json.loads(structured.choices[0].message.content)
    check(f"a schema is followed: {value}", value["city"] in ("القاهرة", "دمشق") and isinstance(value["hot"], bool))

    function = {"name": "get_weather", "description": "حالة الطقس في مدينة", "parameters": schema, "strict": True}
    asked = {**common, "max_tokens": 450, "tools": [{"type": "function", "function": function}],
             "tool_choice": "required", "parallel_tool_calls": False}
    called = client.chat.completions.create(**asked).choices[0]
    call = called.message.tool_calls[0]
    check(f"a tool is called: {call.function.name}({call.function.arguments})", called.finish_reason == "tool_calls" and
          json.loads(call.function.arguments)["city"] in ("القاهرة", "دمشق"))
    with client.chat.completions.stream(**asked) as events:
        streamed = events.get_final_completion().choices[0].message.tool_calls[0]
    check("the streamed call is the same", streamed.function.arguments == call.function.arguments)
    turns = question + [called.message, {"role": "tool", "tool_call_id": call.id, "content": "مشمس"}]
    after = client.chat.completions.create(**{**asked, "messages": turns, "tool_choice": "none", "max_tokens": 10})
    check("the conversation goes on after the result", after.usage.completion_tokens > 0)

    response = client.responses.create(model=model, input="السلام عليكم", temperature=0, max_output_tokens=40)
    check("responses give the same text", response.output_text == text)
    with client.responses.stream(model=model, input="السلام عليكم", temperature=0, max_output_tokens=40) as events:
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        final = events.get_final_response()
    check(f"a streamed response of {len(deltas)} pieces too", "".join(deltas) == text == final.output_text)
    tool = {"type": "function", **function}
    response = client.responses.create(model=model, input="ما الطقس؟", tools=[tool], tool_choice="required",
                                       temperature=0, max_output_tokens=450)
    call = next(item for item in response.output if item.type == "function_call")
    check(f"a response calls {call.name}({call.arguments})", json.loads(call.arguments)["hot"] in (True, False))

    for what, kind, call in [
        ("an unknown model", openai.NotFoundError, lambda: client.chat.completions.create(**{**common, "model": "x"})),
        ("a wrong value", openai.BadRequestError, lambda: client.chat.completions.create(**{**common, "top_p": 7})),
        ("a schema", openai.BadRequestError, lambda: client.chat.completions.create(
            **common, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "y"}}})),
    ]:
        try:
            call()
            check(f"{what} is refused", False)
        except kind as error:
            check(f"{what} is refused: {error.body['message']}", True)

    # A stream that is left half read.
    stream = client.chat.completions.create(**{**common, "max_tokens": 100}, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    check("after a stream that was left, the next question is answered",
          client.chat.completions.create(**common).choices[0].message.content == text)
    print(f"{checks.count} checks passed with openai {openai.__version__}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "none")
