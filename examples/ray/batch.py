"""Answers a file of questions over one or several `bayan serve`, with Ray Data.

    pip install "ray[data]" pydantic aiohttp
    python batch.py questions.jsonl answers URL [URL ...]

Each line of questions.jsonl is {"question": "…"}. Every server gets a share of the lines; a line that fails is asked
again. No code of Ray is in the server: these are HTTP requests.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import ray
from ray.data.llm import HttpRequestProcessorConfig, build_processor


def processor(url):
    config = HttpRequestProcessorConfig(url=f"{url}/v1/chat/completions", headers={"Authorization": "Bearer none"},
                                        qps=None, concurrency=1, batch_size=8, max_retries=5)
    return build_processor(
        config,
        preprocess=lambda row: {"payload": {
            "messages": [{"role": "user", "content": row["question"]}], "temperature": 0, "max_tokens": 64}},
        postprocess=lambda row: {"question": row["question"],
                                 "answer": row["http_response"]["choices"][0]["message"]["content"]},
    )


def main(questions, answers, urls):
    # Ray counts a CPU for every worker, also for those that only wait for a server.
    ray.init(num_cpus=max(os.cpu_count() or 1, 3 * len(urls)))
    parts = ray.data.read_json(questions, lines=True).split(len(urls))

    def write(number):
        processor(urls[number])(parts[number]).write_json(f"{answers}/{number}", force_ascii=False)

    # All servers at once.
    with ThreadPoolExecutor(len(urls)) as pool:
        list(pool.map(write, range(len(urls))))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], [url.rstrip("/") for url in sys.argv[3:]])
