"""Shows each device's link and queue whenever it tells of them. usage: watch_fleet.py [BROKER]"""
import json, sys
import paho.mqtt.client as mqtt

def on_message(client, _, message):
    device, what = message.topic.split("/")[2::2]
    if message.payload:  # an empty one takes back what the broker kept of a device
        said = json.loads(message.payload)
        news = said["state"] if what == "status" else f"{said['link']}, {said['queue']['waiting']} cases waiting"
        print(f"{device}: {news}", flush=True)

client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
client.on_message = on_message
client.on_connect = lambda client, *_: client.subscribe([("hedge/v1/+/up/status", 1), ("hedge/v1/+/up/telemetry", 0)])
client.connect((sys.argv[1:] or ["localhost"])[0])
client.loop_forever()
