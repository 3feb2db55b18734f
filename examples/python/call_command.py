"""Gives a device a command and prints its reply. usage: call_command.py DEVICE COMMAND [ARGS [BROKER]], ARGS in JSON"""
import json, sys, uuid
import paho.mqtt.client as mqtt
device, command = sys.argv[1:3]
args, broker = sys.argv[3:] + ["{}", "localhost"][len(sys.argv) - 3 :]
order = {"id": str(uuid.uuid4()), "command": command, "args": json.loads(args), "by": "call_command.py"}

def on_message(client, _, message):
    reply = json.loads(message.payload)
    if reply.get("id") == order["id"]:
        print(json.dumps(reply, indent=2))
        sys.exit(reply["outcome"] != "done")

client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
client.on_message = on_message
# Only once the broker listens for us, so that no reply is missed. Given twice under one id it runs once.
client.on_subscribe = lambda client, *_: client.publish(f"hedge/v1/{device}/down/command", json.dumps(order), qos=1)
client.connect(broker)
client.subscribe(f"hedge/v1/{device}/up/reply", 1)
client.loop_forever()
