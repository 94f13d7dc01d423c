"""A grpcio client that does what lines on its input say; see client_test.go for the protocol."""
import json
import os
import sys
import threading
import time

import grpc

channels, calls, output = {}, {}, threading.Lock()
OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]


def micros():
    return time.monotonic_ns() // 1000


def say(**event):
    line = json.dumps({"at": micros(), **event}) + "\n"
    with output:
        sys.stdout.write(line)
        sys.stdout.flush()


def channel(order):
    name = order["channel"]
    if name not in channels:
        channels[name] = grpc.insecure_channel(order["target"], options=OPTIONS)
    return channels[name]


def connect(order, channel):
    try:
        grpc.channel_ready_future(channel).result(timeout=order["within"] / 1000)
    except grpc.FutureTimeoutError:
        pass
    say(id=order["channel"], event="connected")


def call(order, channel):
    name, messages, wrong = order["id"], 0, ""
    said = dict(metadata=[("call-id", name)], timeout=order["deadline"] / 1000)
    say(id=name, event="started")
    try:
        if order["unary"]:
            ended = calls[name] = channel.unary_unary(order["path"]).future(b"ask", **said)
            ended.result()
            messages = 1
        else:
            ended = calls[name] = channel.unary_stream(order["path"])(b"ask", **said)
            for message in ended:
                messages += 1
                if messages == 1:
                    say(id=name, event="message")
                if not wrong and message != str(messages).encode():
                    wrong = f"message {messages} is {message!r}"
    except (grpc.RpcError, grpc.FutureCancelledError):
        pass  # the call says it, too
    at, code, metadata = micros(), ended.code(), dict(ended.trailing_metadata() or ())
    say(at=at, id=name, event="end", code=code.value[0] if code else -1, text=ended.details() or "",
        ended=metadata.get("levada-stream-ended", ""), messages=messages, wrong=wrong)
    calls.pop(name, None)


def cancel(order):
    if order["id"] in calls:
        calls[order["id"]].cancel()


def close(order):
    if order["channel"] in channels:
        channels.pop(order["channel"]).close()


for line in sys.stdin:
    order = json.loads(line)
    op = order["op"]
    if op in ("connect", "call"):
        threading.Thread(target={"connect": connect, "call": call}[op], args=(order, channel(order)), daemon=True).start()
    else:
        {"cancel": cancel, "close": close}[op](order)
os._exit(0)  # without waiting for channels
