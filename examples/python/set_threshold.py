"""Sets a model's threshold and says what came of it. usage: set_threshold.py DEVICE MODEL SCORE_MIN [BROKER]"""
import json, sys
import paho.mqtt.client as mqtt
device, model, score, broker = (*sys.argv[1:], "localhost")[:4]
desired = {}

def on_message(client, _, message):
    reported = json.loads(message.payload)
    settings, last = reported["overlay"], reported.get("last", {})
    if not desired:  # the first report: what is in force, the change laid over it, under the next version
        desired.update(version=max(reported["version"], last.get("version", 0)) + 1, settings=settings, by="me")
        settings.setdefault("model", {}).setdefault(model, {}).setdefault("threshold", {})["score_min"] = float(score)
        client.publish(f"hedge/v1/{device}/down/desired", json.dumps(desired), qos=1, retain=True)
    elif last.get("version") == desired["version"]:
        sys.exit(print(last["outcome"], *last.get("errors", [])))
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
client.on_message = on_message
client.connect(broker)
client.subscribe(f"hedge/v1/{device}/up/reported", 1)
client.loop_forever()
