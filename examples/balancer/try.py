"""Asks a balancer while one of its servers is killed, and counts the requests that were lost.

    python try.py http://127.0.0.1:8080 http://127.0.0.1:8081 PID

PID is the process of the server at the second address. Only requests that it had begun may fail. Needs no package.
"""

import json
import os
import re
import signal
import sys
import threading
import time
import urllib.error
import urllib.request

CLIENTS, REQUESTS, TOKENS = 6, 12, 120


def ask(url):
    body = {"messages": [{"role": "user", "content": "السلام عليكم"}], "temperature": 0, "max_tokens": TOKENS,
            "ignore_eos": True}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(),
                                     {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]


def begun_on(server):
    """The number of answers that a server computes or has in its queue."""
    with urllib.request.urlopen(f"{server}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return sum(int(re.search(rf"^bayan_requests_{name} (\d+)$", text, re.M)[1]) for name in ("running", "queued"))


def main(url, server, pid):
    expected = ask(url)
    good, lost = [], []

    def client():
        for _ in range(REQUESTS):
            begun = time.monotonic()
            try:
                good.append(ask(url) == expected)
            except (urllib.error.URLError, OSError, ValueError) as error:
                lost.append((begun, error))

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    # In the middle, and while the server works.
    while len(good) < CLIENTS * REQUESTS // 4 or (begun := begun_on(server)) == 0:
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    for thread in threads:
        thread.join()
    late = [error for begun_at, error in lost if begun_at > killed]
    print(f"{len(good)} answers ({sum(good)} the same); {len(lost)} lost, of {begun} that the killed server had begun; "
          f"{len(late)} lost that were asked later")
    if late or len(lost) > begun or not all(good):
        sys.exit(f"lost requests that did not run on the killed server: {[str(error) for _, error in lost]}")


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"), sys.argv[2].rstrip("/"), int(sys.argv[3]))
