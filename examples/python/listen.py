"""Listens to a device's answers and corrections as they are given, by server-sent events.

usage: listen.py [http://127.0.0.1:8787]
"""
import json
import sys

import requests

base = (sys.argv[1:] or ["http://127.0.0.1:8787"])[0]
# An idle stream says something every 15 seconds: silence for longer is a lost connection.
with requests.get(f"{base}/v1/answers", stream=True, timeout=60) as stream:
    for line in stream.iter_lines(decode_unicode=True):
        field, _, value = line.partition(": ")
        if field == "event":
            event = value
        elif field == "data" and event in ("answer", "correction"):
            answer = json.loads(value)
            result = next(iter(answer.get("result", {}).values()), {})
            print(event, answer["id"], answer["source"], result.get("label", result.get("found")), flush=True)
