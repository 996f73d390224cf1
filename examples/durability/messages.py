#!/usr/bin/env python3
"""Declares queues, sends messages and counts them, for the experiments of docs/durability.md. Needs pika (Debian: python3-pika).

messages.py declare QUEUE [durable] [quorum]
messages.py send    QUEUE COUNT [persistent]
messages.py count   QUEUE
messages.py delete  QUEUE

The broker is the one of AMQP_URL, by default the one on this machine.
"""

import os
import sys

import pika


def main(command, queue, *words):
    url = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")
    channel = pika.BlockingConnection(pika.URLParameters(url)).channel()
    if command == "declare":
        arguments = {"x-queue-type": "quorum" if "quorum" in words else "classic"}
        channel.queue_declare(queue, durable="durable" in words, arguments=arguments)
        print(f"declared {queue}")
    elif command == "send":
        channel.confirm_delivery()
        properties = pika.BasicProperties(delivery_mode=2 if "persistent" in words else 1)
        for number in range(1, int(words[0]) + 1):
            channel.basic_publish("", queue, f"message {number}", properties, mandatory=True)
        print(f"sent {words[0]}, all confirmed by the broker")
    elif command == "count":
        ready = channel.queue_declare(queue, passive=True).method.message_count
        print(f"{queue} has {ready} messages")
    elif command == "delete":
        channel.queue_delete(queue)
        print(f"deleted {queue}")
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except (pika.exceptions.ChannelClosedByBroker, pika.exceptions.ConnectionClosedByBroker) as refusal:
        sys.exit(f"refused: {refusal.reply_code} {refusal.reply_text}")
