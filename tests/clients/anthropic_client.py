"""Asks a running `bayan serve` with the official `anthropic` package, as its users do.

    python anthropic_client.py http://127.0.0.1:8080 [KEY]

Every check fails loudly; the last line counts them. The package is unmodified and has default settings.
"""

import sys

import anthropic

import checks
from checks import check


def main(url, key):
    client = anthropic.Anthropic(base_url=url, api_key=key)
    model = "embedded"
    question = [{"role": "user", "content": "السلام عليكم"}]
    # Newer versions of the package have no argument for these settings.
    common = {"model": model, "messages": question, "extra_body": {"temperature": 0}, "max_tokens": 40}
    whole = client.messages.create(**common)
    text = whole.content[0].text
    check(f"a question is answered: {text}", bool(text) and whole.stop_reason in ("end_turn", "max_tokens"))
    count = client.messages.count_tokens(model=model, messages=question).input_tokens
    used = whole.usage.input_tokens + whole.usage.cache_read_input_tokens
    check(f"count_tokens is {count}, as in the usage", count == used)

    with client.messages.stream(**common) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    check(f"a stream of {len(pieces)} pieces is the same text", "".join(pieces) == text == final.content[0].text)
    check("the stream's usage is the same", final.usage.output_tokens == whole.usage.output_tokens)

    stop = text[4:7]
    stopped = client.messages.create(**common, stop_sequences=[stop])
    check(f"the text {stop!r} ends the answer", stopped.stop_reason == "stop_sequence" and stopped.stop_sequence == stop)

    schema = {"type": "object", "properties": {"city": {"enum": ["القاهرة", "دمشق"]}}, "required": ["city"],
              "additionalProperties": False}
    tool = {"name": "get_weather", "description": "حالة الطقس في مدينة", "input_schema": schema}
    asked = {**common, "tools": [tool], "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
             "max_tokens": 300}
    called = client.messages.create(**asked)
    block = called.content[-1]
    check(f"a tool is called: {block.name}({block.input})", called.stop_reason == "tool_use" and
          block.input["city"] in ("القاهرة", "دمشق"))
    with client.messages.stream(**asked) as stream:
        streamed = stream.get_final_message().content[-1]
    check("the streamed call is the same", (streamed.name, streamed.input) == (block.name, block.input))
    turns = question + [{"role": "assistant", "content": called.content},
                        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": block.id, "content": "مشمس"}]}]
    after = client.messages.create(**{**asked, "messages": turns, "tool_choice": {"type": "none"}, "max_tokens": 10})
    check("the conversation goes on after the result", after.usage.output_tokens > 0)

    for what, kind, call in [
        ("an unknown model", anthropic.NotFoundError, lambda: client.messages.create(**{**common, "model": "x"})),
        ("a wrong value", anthropic.BadRequestError, lambda: client.messages.create(**{**common, "extra_body": {"top_p": 7}})),
        ("an image", anthropic.BadRequestError, lambda: client.messages.create(**{**common, "messages": [
            {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://x"}}]}]})),
    ]:
        try:
            call()
            check(f"{what} is refused", False)
        except kind as error:
            check(f"{what} is refused: {error.body['error']['message']}", True)
    print(f"{checks.count} checks passed with anthropic {anthropic.__version__}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "none")
