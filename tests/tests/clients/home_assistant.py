"""Fills in the templates of a discovery message as Home Assistant does.

usage: home_assistant.py DISCOVERY show ENTITY MESSAGE          prints the state
       home_assistant.py DISCOVERY set ENTITY MESSAGE VALUE     prints what is published: topic, retain and payload

MESSAGE is the last one on the entity's topic. DISCOVERY and MESSAGE are JSON.
"""
import datetime
import json
import sys

import jinja2.sandbox

discovery, action, name, message = sys.argv[1:5]
entity = json.loads(discovery)["components"][name]
# No function of Home Assistant's own but these.
environment = jinja2.sandbox.ImmutableSandboxedEnvironment()
environment.filters["to_json"] = lambda value: json.dumps(value, separators=(",", ":"))
environment.globals["now"] = datetime.datetime.now


def fill_in(template, **values):
    return environment.from_string(template).render(**values).strip()


def of_message(template):
    return fill_in(entity[template], value=message, value_json=json.loads(message))


if action == "show":
    print(of_message("value_template"))
else:
    attributes = json.loads(of_message("json_attributes_template")) if "json_attributes_template" in entity else {}
    value = float(sys.argv[5]) if entity["platform"] == "number" else sys.argv[5]
    payload = fill_in(entity["command_template"], value=value, this={"attributes": attributes})
    print(entity["command_topic"], entity.get("retain", False), payload, sep="\n")
