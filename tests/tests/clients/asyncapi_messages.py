"""Holds messages of a real run, and the document's own examples, against the schemas of an AsyncAPI document.

usage: asyncapi_messages.py DOCUMENT MESSAGES

A message a line: topic, tab, payload in hexadecimal. Prints the channels that were seen.
"""
import json
import re
import sys

import cbor2
import jsonschema

with open(sys.argv[1]) as file:
    document = json.load(file)
messages = document["components"]["messages"]


def as_json(value):
    """The data of CBOR as JSON: byte strings are hexadecimal text, as the document says."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {key: as_json(inner) for key, inner in value.items()}
    return [as_json(inner) for inner in value] if isinstance(value, list) else value


def validator(key):
    # The schemas refer to each other from the document's root.
    schema = {"allOf": [messages[key]["payload"]], "components": document["components"]}
    return jsonschema.Draft7Validator(schema)


validators = {key: validator(key) for key in messages}
for key, message in messages.items():
    for example in message["examples"]:
        validators[key].validate(example["payload"])
    # A schema that takes anything would show nothing.
    assert key == "operatorMarker" or not validators[key].is_valid({}), f"{key} takes an empty object"

patterns = {
    key: re.compile(re.sub(r"\{\w+\}", "[^/]+", channel["address"])) for key, channel in document["channels"].items()
}
seen = set()
with open(sys.argv[2]) as file:
    for line in file:
        topic, payload = line.rstrip("\n").split("\t")
        [key] = [key for key, pattern in patterns.items() if pattern.fullmatch(topic)]
        seen.add(key)
        payload = bytes.fromhex(payload)
        if key == "operatorMarker":
            assert not payload, payload
        elif messages[key]["contentType"] == "application/cbor":
            validators[key].validate(as_json(cbor2.loads(payload)))
        else:
            validators[key].validate(json.loads(payload))
print(*sorted(seen))
