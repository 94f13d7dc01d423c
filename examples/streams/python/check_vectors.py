#!/usr/bin/python3
"""Checks this producer's digests, tokens and frames against the test vectors of the protocol.

    python3 check_vectors.py [FILE]

FILE is stream/testdata/protocol-v1.json of the repository by default.
"""

import json
import os
import sys

import stream_pb2 as pb
from levada_stream import BadToken, Position, crc32c, digest_bytes, fingerprint, mix, record_hash


def main(path):
    with open(path, encoding="utf-8") as file:
        vectors = json.load(file)
    checks = 0

    def equal(what, got, want):
        nonlocal checks
        checks += 1
        if got != want:
            sys.exit(f"{what}: got {got!r}, want {want!r}")

    unhex = bytes.fromhex
    for v in vectors["crc32c"]:
        equal(f"crc32c of {v['data']}", f"{crc32c(unhex(v['data'])):08x}", v["crc32c"])
    for v in vectors["mix"]:
        equal(f"mix of {v['x']}", f"{mix(int(v['x'], 16)):016x}", v["mix"])
    for v in vectors["records"]:
        got = record_hash(v["seq"], unhex(v["key"]), unhex(v["value"]))
        equal(f"record {v['seq']} with key {v['key']}", digest_bytes(got).hex(), v["hash"])
    for v in vectors["digests"]:
        total = 0
        for record in v["records"]:
            total += record_hash(record["seq"], unhex(record["key"]), unhex(record["value"]))
            equal(f"{v['name']}: digest up to record {record['seq']}", digest_bytes(total).hex(), record["digest"])
        equal(v["name"], digest_bytes(total).hex(), v["digest"])
    for v in vectors["fingerprints"]:
        equal(f"fingerprint of {v['texts']}", fingerprint(*(text.encode() for text in v["texts"])).hex(), v["fingerprint"])
    for v in vectors["tokens"]:
        digest = int.from_bytes(unhex(v["digest"]), "little")
        position = Position(unhex(v["fingerprint"]), unhex(v["generation"]), v["seq"], digest, unhex(v["key"]))
        equal(f"token after record {v['seq']}", position.token().hex(), v["token"])
        equal(f"token after record {v['seq']}, parsed", vars(Position.parse(unhex(v["token"]))), vars(position))
    for v in vectors["refused_tokens"]:
        try:
            Position.parse(unhex(v["token"]))
        except BadToken:
            checks += 1
        else:
            sys.exit(f"a token is taken that must be refused: {v['why']}")
    for v in vectors["messages"]:
        message = getattr(pb, v["message"]).FromString(unhex(v["bytes"]))
        equal(f"{v['name']}, encoded again", message.SerializeToString(deterministic=True).hex(), v["bytes"])
    print(f"{checks} vectors are right")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        sys.exit(__doc__)
    file = sys.argv[1] if len(sys.argv) == 2 else os.path.join(os.path.dirname(os.path.abspath(__file__)), *"../../../stream/testdata/protocol-v1.json".split("/"))
    if not os.path.isfile(file):
        sys.exit(f"{file}: no such file: give the path of the repository's stream/testdata/protocol-v1.json")
    main(file)
