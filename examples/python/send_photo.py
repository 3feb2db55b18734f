"""Sends a photo and waits up to ten seconds for the cloud's word on it.

usage: send_photo.py PHOTO [http://127.0.0.1:8787]
"""
import sys

import requests

photo, base = sys.argv[1], (sys.argv[2:] or ["http://127.0.0.1:8787"])[0]
with open(photo, "rb") as picture:
    reply = requests.post(f"{base}/v1/samples", params={"wait_ms": 10_000}, data=picture, timeout=30)
answer = reply.json()
if not reply.ok:
    sys.exit(answer["error"])
label = answer["result"]["classify"]["label"]
print(f"{label}, says the {answer['authority']}", "(may still be corrected)" if answer["provisional"] else "")
