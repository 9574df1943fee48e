"""Answers a file of questions over one or several `bayan serve`, with Ray Data.

    pip install "ray[data,llm]"
    python batch.py questions.jsonl answers URL [URL ...]

Each line of questions.jsonl is {"question": "…"}. Every server gets a share of the lines; a line that fails is asked
again. No code of Ray is in the server: these are HTTP requests.
"""

import sys

import ray
from ray.data.llm import HttpRequestProcessorConfig, build_processor


def processor(url):
    config = HttpRequestProcessorConfig(url=f"{url}/v1/chat/completions", headers={"Authorization": "Bearer none"},
                                        qps=None, concurrency=1, batch_size=8)
    return build_processor(
        config,
        preprocess=lambda row: {"payload": {
            "messages": [{"role": "user", "content": row["question"]}], "temperature": 0, "max_tokens": 64}},
        postprocess=lambda row: {"question": row["question"],
                                 "answer": row["http_response"]["choices"][0]["message"]["content"]},
    )


def main(questions, answers, urls):
    parts = ray.data.read_json(questions, lines=True).split(len(urls))
    for number, (part, url) in enumerate(zip(parts, urls)):
        processor(url)(part).write_json(f"{answers}/{number}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], [url.rstrip("/") for url in sys.argv[3:]])
