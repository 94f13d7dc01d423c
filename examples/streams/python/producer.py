#!/usr/bin/python3
"""Serves the table "users" of an SQLite file as the stream "users", to any worker or reader of Levada.

    python3 producer.py --database users.db --listen 127.0.0.1:50051

The table is: create table users (id integer primary key, name text). A row is a record: its key is the id in 8 bytes, big
endian, so that keys grow as ids do; its value is JSON. A row without a name cannot be made: it goes into quarantine at the
reader, and the others go on.

SIGTERM ends each stream between two batches and tells the readers to go on elsewhere.
"""

import argparse
import json
import logging
import signal
import sqlite3
import struct
import sys
import threading
from concurrent import futures

import grpc

from levada_stream import Producer


def users(database, follow, pace):
    """The source: the rows after a key, in the order of the ids. With follow it waits for rows that are inserted later, which
    must have greater ids: SQLite has one writer at a time, so ids are committed in order. Most databases commit out of order."""

    def source(query, after, stopped):
        connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
        try:
            last = struct.unpack(">Q", after)[0] if after else 0
            while not stopped.is_set():
                rows = connection.execute("select id, name from users where id > ? order by id limit 1000", (last,)).fetchall()
                for last, name in rows:
                    if stopped.wait(pace) if pace else stopped.is_set():
                        return
                    yield struct.pack(">Q", last), lambda: encode(last, name)
                if not rows and not follow:
                    return
                if not rows:
                    stopped.wait(0.1)
        finally:
            connection.close()

    return source


def encode(id, name):
    if name is None:
        raise ValueError(f"user {id} has no name")
    return json.dumps({"id": id, "name": name}, separators=(",", ":")).encode()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", required=True, help="the SQLite file with the table users")
    parser.add_argument("--listen", default="127.0.0.1:50051", help="address to listen on (default %(default)s); port 0 chooses one")
    parser.add_argument("--mark-every", type=float, default=5, help="seconds after which a silent stream shows that it lives (default %(default)s)")
    parser.add_argument("--max-stream-age", type=float, default=1800, help="seconds after which a stream moves elsewhere (default %(default)s)")
    parser.add_argument("--batch-bytes", type=int, default=256 << 10, help="size at which a batch is sent (default %(default)s)")
    parser.add_argument("--max-streams", type=int, default=32, help="streams served at once (default %(default)s)")
    parser.add_argument("--pace", type=float, default=0, help="seconds to wait before each record, to try interruptions (default %(default)s)")
    args = parser.parse_args()
    try:  # here, since a producer that cannot read its table would be announced, and then end each stream with an error
        sqlite3.connect(f"file:{args.database}?mode=ro", uri=True).execute("select id, name from users limit 0").close()
    except sqlite3.Error as e:
        sys.exit(f"--database {args.database}: cannot read the columns id and name of the table users: {e}")
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")

    producer = Producer(args.max_streams, args.batch_bytes, mark_every=args.mark_every, max_stream_age=args.max_stream_age)
    producer.handle("users", users(args.database, False, args.pace))
    producer.handle("users-live", users(args.database, True, args.pace))
    pool = futures.ThreadPoolExecutor(max_workers=args.max_streams + 8)
    # Without so_reuseport 0, a second producer on the same port is no error, and gets half of the readers.
    server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
    producer.add_to(server)
    try:
        port = server.add_insecure_port(args.listen)  # in earnest: add_secure_port
    except RuntimeError as e:
        sys.exit(f"cannot listen on {args.listen}: {e}")
    if port == 0:
        sys.exit(f"cannot listen on {args.listen}: the address is in use, or not one of this machine")

    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    server.start()
    print(f"serving at {args.listen.rsplit(':', 1)[0]}:{port}", flush=True)
    ended.wait()
    logging.info("shutting down, streams are drained")
    if not producer.drain(timeout=20):
        logging.warning("streams did not end in time, cutting them")
    server.stop(grace=5).wait()


if __name__ == "__main__":
    main()
