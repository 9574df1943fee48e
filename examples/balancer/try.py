"""Asks a balancer while one of its servers is killed, and counts the requests that were lost.

    python try.py http://127.0.0.1:8080 PID_OF_A_SERVER

Only requests that ran on the killed server may fail. Needs no package.
"""

import json
import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request

CLIENTS, REQUESTS = 4, 12


def ask(url):
    body = {"messages": [{"role": "user", "content": "السلام عليكم"}], "temperature": 0, "max_tokens": 24}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(),
                                     {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]


def main(url, pid):
    expected = ask(url)
    good, lost, running, killed = [], [], set(), {}

    def client(number):
        for turn in range(REQUESTS):
            begun = time.monotonic()
            running.add((number, turn))
            try:
                good.append(ask(url) == expected)
            except (urllib.error.URLError, OSError, ValueError) as error:
                lost.append((begun, error))
            running.discard((number, turn))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    time.sleep(2)
    killed["at"], killed["running"] = time.monotonic(), len(running)
    os.kill(pid, signal.SIGKILL)
    for thread in threads:
        thread.join()
    late = [error for begun, error in lost if begun > killed["at"]]
    print(f"{len(good)} answers ({sum(good)} the same), {len(lost)} lost of {killed['running']} that ran; "
          f"{len(late)} lost that began later")
    if late or len(lost) > killed["running"] or not all(good):
        sys.exit(f"lost requests that were not running on the killed server: {late}")


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"), int(sys.argv[2]))
