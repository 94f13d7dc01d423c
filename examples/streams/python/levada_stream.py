"""A producer of levada.stream.v1 in Python: what docs/streams-protocol.md specifies, in one file to copy.

A source is a function of (query, after, stopped). It returns an iterator of (key, value):

- keys are bytes, grow strictly, compared byte by byte, and begin with the first one greater than after;
- a value is bytes, or a function without parameters that returns bytes; an exception that the function raises costs that
  record only: the reader puts it into quarantine;
- stopped is a threading.Event that is set when nobody reads any more: a source that waits for records waits on it, too.
- a Refusal ends the stream with its status, such as OUT_OF_RANGE and POSITION_GONE for records that were deleted.

The iterator's end is the stream's end. Any other exception ends the stream, and the reader tries again later.
"""

import hashlib
import logging
import random
import struct
import threading
import time
from collections import deque

import grpc
from google.protobuf import any_pb2, duration_pb2

import stream_pb2 as pb

log = logging.getLogger("levada.stream")

METHOD_SERVICE = "levada.stream.v1.Stream"
ERROR_DOMAIN = "stream.levada.io"
MAX_KEY = 16 << 10
MAX_BAD_TEXT = 1 << 10
MASK = (1 << 64) - 1

try:  # Debian: python3-crc32c. The one in Python below reads about 5 MB a second.
    from crc32c import crc32c
except ImportError:

    def _table():
        for n in range(256):
            for _ in range(8):
                n = n >> 1 ^ 0x82F63B78 if n & 1 else n >> 1
            yield n

    _CRC_TABLE = tuple(_table())

    def crc32c(data, crc=0):
        """The CRC-32C (Castagnoli) of data, going on from the checksum of what comes before it."""
        crc ^= 0xFFFFFFFF
        for byte in data:
            crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
        return crc ^ 0xFFFFFFFF


# The digest.


def mix(x):
    """The finalizer of splitmix64."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def record_hash(seq, key, value):
    """The hash of one record, as a number of 128 bits. The value of a bad record is empty."""
    crc = crc32c(value, crc32c(key))
    content = (crc << 32 ^ len(key) << 48 ^ len(value)) & MASK
    a = mix((seq * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & MASK)
    b = mix(a ^ content)
    return mix(b + a & MASK) << 64 | b


def digest_bytes(total):
    """A sum of hashes as it goes over the wire."""
    return (total % (1 << 128)).to_bytes(16, "little")


# The token. Readers only keep it, so a producer may choose another form. This is the one that Go's uses: replicas in both
# languages can serve the same stream, and readers can go from one to the other.

_TOKEN = struct.Struct(">B I 8s 8s Q 16s")
_TOKEN_VERSION = 1


class BadToken(Exception):
    pass


def fingerprint(*texts):
    h = hashlib.sha256()
    for text in texts:
        h.update(b"%d:%s" % (len(text), text))
    return h.digest()[:8]


class Position:
    """The place after record seq: key is that record's, and digest the sum over records 1 to seq."""

    def __init__(self, query, generation=bytes(8), seq=0, digest=0, key=b""):
        self.query, self.generation, self.seq, self.digest, self.key = query, generation, seq, digest, key

    def advance(self, key, value):
        self.seq += 1
        self.digest += record_hash(self.seq, key, value)
        self.key = key

    def copy(self):
        return Position(self.query, self.generation, self.seq, self.digest, self.key)

    def token(self):
        rest = self.query + self.generation + struct.pack(">Q", self.seq) + digest_bytes(self.digest) + self.key
        return bytes([_TOKEN_VERSION]) + struct.pack(">I", crc32c(rest)) + rest

    @staticmethod
    def parse(token):
        if len(token) < _TOKEN.size:
            raise BadToken(f"a token has at least {_TOKEN.size} bytes, this one {len(token)}")
        version, crc, query, generation, seq, digest = _TOKEN.unpack_from(token)
        if version != _TOKEN_VERSION:
            raise BadToken(f"its version is {version}, and this producer knows {_TOKEN_VERSION}")
        if crc != crc32c(token[5:]):
            raise BadToken("it is damaged, or was not made by a producer")
        key = token[_TOKEN.size :]
        if seq > 0 and not key:
            raise BadToken("it has no key")
        return Position(query, generation, seq, int.from_bytes(digest, "little"), key)


# Statuses.


class Refusal(Exception):
    """Ends a stream with a status that readers can act on."""

    def __init__(self, code, reason, text, retry=0.0):
        super().__init__(text)
        self.code, self.reason, self.text, self.retry = code, reason, text, retry

    def abort(self, context):
        details = [_any("google.rpc.ErrorInfo", _field(1, self.reason.encode()) + _field(2, ERROR_DOMAIN.encode()))]
        if self.retry:
            details.append(_any("google.rpc.RetryInfo", _field(1, _duration(self.retry).SerializeToString())))
        number, text = self.code.value[0], self.text.encode()
        status = bytes([1 << 3, number]) + _field(2, text) + b"".join(_field(3, d) for d in details)
        context.set_trailing_metadata((("grpc-status-details-bin", status),))
        context.abort(self.code, self.text)


def _field(number, data):
    """A field of bytes in protobuf's encoding: google.rpc's messages are not in Debian, and these are all we need of them."""
    length, n = b"", len(data)
    while n > 127:
        length, n = length + bytes([n & 127 | 128]), n >> 7
    return bytes([number << 3 | 2]) + length + bytes([n]) + data


def _any(name, data):
    return any_pb2.Any(type_url="type.googleapis.com/" + name, value=data).SerializeToString()


def _duration(seconds):
    d = duration_pb2.Duration()
    d.FromNanoseconds(int(seconds * 1e9))
    return d


# The producer.


class Producer:
    """Serves sources as levada.stream.v1.Stream. It keeps nothing about its readers.

    Each stream takes a thread of the gRPC server, so the server's pool needs more threads than max_streams: those that are
    left answer the readers that are refused.
    """

    def __init__(self, max_streams=32, batch_bytes=256 << 10, max_record=3584 << 10, batch_delay=0.001, mark_every=5.0, max_stream_age=1800.0):
        self.max_streams, self.batch_bytes, self.max_record = max_streams, batch_bytes, max_record
        self.batch_delay, self.mark_every, self.max_stream_age = batch_delay, mark_every, max_stream_age
        self._sources = {}
        self._cond = threading.Condition()  # guards what follows
        self._open = set()
        self._draining = False

    def handle(self, stream, source, schema=b"", generation=None):
        """Serves a source. schema names what its order and content depend on beside the query; generation names the life of
        the data, and changes after a restore from a backup. Positions of another schema or generation are refused."""
        self._sources[stream] = source, schema, fingerprint(generation) if generation is not None else bytes(8)

    def add_to(self, server):
        read = grpc.unary_stream_rpc_method_handler(
            self.read, request_deserializer=pb.ReadRequest.FromString, response_serializer=pb.Frame.SerializeToString
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(METHOD_SERVICE, {"Read": read}),))

    def drain(self, timeout):
        """Ends each stream between two batches, refuses new ones, and returns whether none is left."""
        with self._cond:
            self._draining = True
            for reading in self._open:
                reading.wake(drain=True)
            return self._cond.wait_for(lambda: not self._open, timeout)

    def read(self, request, context):
        reading = None
        try:
            source, at = self._start(request)
            reading = self._enter(request, source, at)
            if not context.add_callback(reading.stop):  # called when the reader is gone
                return
            yield from reading.frames(context)
        except Refusal as refusal:
            log.warning("stream ends, stream=%s job=%s reason=%s: %s", request.stream, request.job, refusal.reason, refusal.text)
            refusal.abort(context)
        finally:
            if reading is not None:
                reading.stop()
                self._leave(reading)

    def _start(self, request):
        if request.stream not in self._sources:
            raise Refusal(grpc.StatusCode.NOT_FOUND, "UNKNOWN_STREAM", f'unknown stream: "{request.stream}"')
        source, schema, generation = self._sources[request.stream]
        at = Position(fingerprint(request.stream.encode(), request.query, schema), generation)
        if request.after:
            try:
                given = Position.parse(request.after)
            except BadToken as why:
                raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "BAD_TOKEN", f"unknown position: {why}") from why
            if given.query != at.query:
                text = "the query is not the one that the position belongs to: finish or cancel the job under the old query, or submit a new job"
                raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, "QUERY_CHANGED", text)
            if given.generation != at.generation:
                text = "the source is not the one that the position belongs to: it was restored or replaced since; submit a new job"
                raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, "GENERATION_CHANGED", text)
            at = given
        if request.next_seq and request.next_seq <= at.seq:
            text = f"record {request.next_seq} is asked for after a position that follows record {at.seq}"
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "BAD_TOKEN", text)
        return source, at

    def _enter(self, request, source, at):
        with self._cond:
            if self._draining:
                raise Refusal(grpc.StatusCode.UNAVAILABLE, "DRAINING", "the producer is shutting down", retry=0.1)
            if len(self._open) >= self.max_streams:
                text = f"{len(self._open)} streams are open, which is the limit"
                raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS", text, retry=random.uniform(0.9, 1.1))
            reading = _Reading(self, request, source, at)
            self._open.add(reading)
            return reading

    def _leave(self, reading):
        with self._cond:
            self._open.discard(reading)
            self._cond.notify_all()


class _Reading:
    """One stream. A thread goes through the source, and gRPC's sends: so marks go out while the source waits."""

    def __init__(self, producer, request, source, at):
        self.producer, self.request, self.source = producer, request, source
        self.target, self.max_record = producer.batch_bytes, producer.max_record
        if request.max_batch_bytes:  # a record behind a batch that is not quite full must fit in, too
            self.target = min(self.target, max(request.max_batch_bytes // 4, 1))
            self.max_record = min(self.max_record, request.max_batch_bytes - self.target)
        self.max_records = request.max_batch_records or 1 << 30
        self.at = at  # after the last record that was sent
        self.read_to = at.copy()  # after the last record that was read
        self.skip = max(request.next_seq - at.seq - 1, 0)  # records after the position that the reader has already
        self.stopped = threading.Event()
        self.cond = threading.Condition()  # guards what follows
        self.pending = deque()  # (record, size, position after it), not sent yet
        self.pending_bytes = 0
        self.ended = False
        self.error = None
        self.draining = False

    def stop(self):
        self.stopped.set()
        self.wake()

    def wake(self, drain=False):
        with self.cond:
            self.draining = self.draining or drain
            self.cond.notify_all()

    # The thread that reads.

    def _read(self):
        error = None
        try:
            for key, value in self.source(self.request.query, self.read_to.key, self.stopped):
                if not self._add(bytes(key), value):
                    return
            if self.skip:
                text = f"the stream ended {self.skip} records before the position that the reader has"
                raise Refusal(grpc.StatusCode.OUT_OF_RANGE, "POSITION_GONE", text)
        except Refusal as refusal:
            error = refusal
        except Exception as e:
            log.exception("source failed, stream=%s", self.request.stream)
            error = Refusal(grpc.StatusCode.UNAVAILABLE, "SOURCE_FAILED", f"{type(e).__name__}: {e}")
        finally:
            with self.cond:
                self.ended, self.error = True, error
                self.cond.notify_all()

    def _add(self, key, value):
        """Takes a record, when there is room for it. False: nobody reads any more."""
        if key <= self.read_to.key:  # also an empty one
            raise Refusal(grpc.StatusCode.INTERNAL, "OUT_OF_ORDER", f"the source's keys do not grow: {key!r} came after {self.read_to.key!r}")
        if len(key) > MAX_KEY:
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, "SOURCE_HALTED", f"a key has {len(key)} bytes, and {MAX_KEY} are allowed")
        bad = ""
        try:
            value = bytes(value() if callable(value) else value)
        except Exception as e:
            bad = f"{type(e).__name__}: {e}"
        else:
            if len(key) + len(value) + 32 > self.max_record:
                bad = f"record too large: it has {len(value)} bytes, and the limit is {self.max_record}"
        if bad:
            # What is cut off at the limit may be a part of a character.
            value, bad = b"", bad.encode("utf-8", "replace")[:MAX_BAD_TEXT].decode("utf-8", "ignore")
            log.error("record cannot be read, error sent to the reader, stream=%s record=%d key=%r: %s", self.request.stream, self.read_to.seq + 1, key, bad)
        self.read_to.advance(key, value)
        if self.skip:
            self.skip -= 1
            with self.cond:
                self.at = self.read_to.copy()
            return not self.stopped.is_set()
        record = pb.Record(key=key, value=value, bad=bad)
        size = len(key) + len(value) + len(bad.encode()) + 16  # at least what it takes on the wire
        with self.cond:
            self.pending.append((record, size, self.read_to.copy()))
            self.pending_bytes += size
            self.cond.notify_all()
            self.cond.wait_for(lambda: self.stopped.is_set() or self.pending_bytes < self.target)
        return not self.stopped.is_set()

    # gRPC's thread, which sends.

    def frames(self, context):
        first = max(self.at.seq + 1, self.request.next_seq)
        yield self._mark(first)
        thread = threading.Thread(target=self._read, name="source of " + self.request.stream, daemon=True)
        thread.start()
        old = time.monotonic() + self.producer.max_stream_age * random.uniform(0.9, 1.1)
        while True:
            batch, drain, ended, error = self._next(min(self.producer.mark_every, max(old - time.monotonic(), 0)))
            if self.stopped.is_set() or not context.is_active():
                return
            if drain:
                yield pb.Frame(drain=pb.Drain(reason="shutdown", retry_after=_duration(0.1)))
                return
            if batch:
                yield pb.Frame(batch=batch)
            elif error:
                raise error
            elif ended:
                yield pb.Frame(end=pb.End(count=self.at.seq, digest=digest_bytes(self.at.digest), token=self.at.token()))
                return
            elif time.monotonic() < old:
                yield self._mark(max(self.at.seq + 1, first))
            if time.monotonic() >= old:
                yield pb.Frame(drain=pb.Drain(reason="age"))
                return

    def _next(self, timeout):
        """Waits for something to send: a batch, a wish to end, the end; nothing if a mark is due."""
        with self.cond:
            self.cond.wait_for(self._due, timeout)
            if self.pending and not self._full():
                self.cond.wait_for(lambda: self._full() or self.ended or self.draining or self.stopped.is_set(), self.producer.batch_delay)
            if self.draining:
                return None, True, False, None
            if not self.pending:
                return None, False, self.ended, self.error
            batch, size = pb.Batch(first_seq=self.at.seq + 1), 0
            while self.pending and size < self.target and batch.count < self.max_records:
                record, bytes_, self.at = self.pending.popleft()
                size += bytes_
                self.pending_bytes -= bytes_
                batch.records.append(record)
                batch.count += 1
            self.cond.notify_all()
        batch.token, batch.digest = self.at.token(), digest_bytes(self.at.digest)
        return batch, False, False, None

    def _due(self):
        return self.pending or self.ended or self.draining or self.stopped.is_set()

    def _full(self):
        return self.pending_bytes >= self.target or len(self.pending) >= self.max_records

    def _mark(self, next_seq):
        with self.cond:
            if next_seq <= self.at.seq:
                next_seq = self.at.seq + 1
            # While records are passed over that the reader has, the position may lie before the next record: both are named.
            return pb.Frame(mark=pb.Mark(token=self.at.token(), next_seq=next_seq))
