package stream

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"hash/crc32"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	streamv1 "github.com/levada-io/levada/proto/levada/stream/v1"
)

var updateProtocol = flag.Bool("update-protocol", false, "write testdata/protocol-v1.json again")

const vectorsFile = "testdata/protocol-v1.json"

// hexBytes are bytes as hexadecimal digits in JSON.
type hexBytes []byte

func (h hexBytes) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h)), nil }
func (h *hexBytes) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

// vectors are the test vectors of the protocol: docs/streams-protocol.md says what each list means.
type vectors struct {
	About        string              `json:"about"`
	CRC32C       []crcVector         `json:"crc32c"`
	Mix          []mixVector         `json:"mix"`
	Records      []recordVector      `json:"records"`
	Digests      []digestVector      `json:"digests"`
	Fingerprints []fingerprintVector `json:"fingerprints"`
	Tokens       []tokenVector       `json:"tokens"`
	Refused      []refusedVector     `json:"refused_tokens"`
	Messages     []messageVector     `json:"messages"`
	Readings     []readingVector     `json:"readings"`
}

type (
	crcVector struct {
		Data hexBytes `json:"data"`
		CRC  hexBytes `json:"crc32c"`
	}
	mixVector struct {
		X   hexBytes `json:"x"`
		Mix hexBytes `json:"mix"`
	}
	recordVector struct {
		Seq   uint64   `json:"seq"`
		Key   hexBytes `json:"key"`
		Value hexBytes `json:"value"`
		Bad   string   `json:"bad,omitempty"`
		// One of them, as a digest of this record alone, and of it and those before.
		Hash   hexBytes `json:"hash,omitempty"`
		Digest hexBytes `json:"digest,omitempty"`
	}
	digestVector struct {
		Name    string         `json:"name"`
		Records []recordVector `json:"records"`
		Digest  hexBytes       `json:"digest"`
	}
	fingerprintVector struct {
		Texts       []string `json:"texts"`
		Fingerprint hexBytes `json:"fingerprint"`
	}
	tokenVector struct {
		Fingerprint hexBytes `json:"fingerprint"`
		Generation  hexBytes `json:"generation"`
		Seq         uint64   `json:"seq"`
		Digest      hexBytes `json:"digest"`
		Key         hexBytes `json:"key"`
		Token       hexBytes `json:"token"`
	}
	refusedVector struct {
		Why   string   `json:"why"`
		Token hexBytes `json:"token"`
	}
	messageVector struct {
		Name    string   `json:"name"`
		Message string   `json:"message"`
		Bytes   hexBytes `json:"bytes"`
	}
	// readingVector is what a producer sends on one stream after another, and what a reader makes of it.
	readingVector struct {
		Name string `json:"name"`
		// Streams are the answers to the reader's requests, the first of which asks from the start. Each ends with OK unless Status is set.
		Streams []streamVector `json:"streams"`
		// Outcome is what becomes of the reader: complete, or fails for good with this reason.
		Outcome Reason `json:"outcome"`
		// Records is how many it has taken by then.
		Records uint64 `json:"records"`
	}
	streamVector struct {
		// After and NextSeq are what the reader must ask for.
		After   hexBytes   `json:"after"`
		NextSeq uint64     `json:"next_seq"`
		Frames  []hexBytes `json:"frames"`
		// Code is the status that the stream ends with, and Reason that of its ErrorInfo.
		Code   string `json:"code,omitempty"`
		Reason Reason `json:"reason,omitempty"`
	}
)

func record(seq uint64, key, value string) Record {
	return Record{Seq: seq, Key: []byte(key), Value: []byte(value)}
}

func digestOf(records ...Record) (d Digest) {
	for _, r := range records {
		d.Add(r)
	}
	return d
}

// protocolVectors makes the vectors with this package.
func protocolVectors(t *testing.T) *vectors {
	v := &vectors{About: "Test vectors of levada.stream.v1, as docs/streams-protocol.md specifies it. Byte strings are hexadecimal."}
	for _, data := range []string{"", "a", "123456789", strings.Repeat("\x00", 32), strings.Repeat("\xff", 32), "Straße"} {
		v.CRC32C = append(v.CRC32C, crcVector{hexBytes(data), binary.BigEndian.AppendUint32(nil, crc32.Checksum([]byte(data), castagnoli))})
	}
	for _, x := range []uint64{0, 1, 2, 0x9e3779b97f4a7c15, 1 << 63, 1<<64 - 1} {
		v.Mix = append(v.Mix, mixVector{binary.BigEndian.AppendUint64(nil, x), binary.BigEndian.AppendUint64(nil, mix(x))})
	}
	long := strings.Repeat("k", 16<<10)
	for _, r := range []Record{
		record(1, "a", ""), record(1, "a", "1"), record(2, "a", "1"), record(1, "", "a1"), record(1, "a1", ""), record(1, "1", "a"),
		record(1<<32, "key", "value"), record(1<<64-1, "\x00\xff", "\xff\x00"), record(3, "user 003", strings.Repeat("v", 1000)), record(9, long, "x"),
	} {
		d := digestOf(r)
		v.Records = append(v.Records, recordVector{Seq: r.Seq, Key: hexBytes(r.Key), Value: hexBytes(r.Value), Hash: d[:]})
	}
	bad := Record{Seq: 3, Key: []byte("3"), Bad: "panic: no name"}
	users := []Record{record(1, "1", "Ada"), record(2, "2", "Grace"), bad, record(4, "4", "Edsger")}
	carry := []Record{}
	for i := range uint64(300) { // enough for carries out of the lower half, and out of the upper one
		carry = append(carry, record(i+1, string(binary.BigEndian.AppendUint64(nil, i+1)), strings.Repeat("x", int(i%7))))
	}
	for _, test := range []struct {
		name    string
		records []Record
	}{{"no records", nil}, {"four users, the third of which is bad", users}, {"300 records", carry}} {
		d := digestVector{Name: test.name, Records: []recordVector{}}
		var sum Digest
		for _, r := range test.records {
			sum.Add(r)
			d.Records = append(d.Records, recordVector{Seq: r.Seq, Key: r.Key, Value: hexBytes(r.Value), Bad: r.Bad, Digest: bytes.Clone(sum[:])})
		}
		d.Digest = sum[:]
		v.Digests = append(v.Digests, d)
	}
	for _, texts := range [][]string{{"users", "", ""}, {"users", "where country = 'NL'", ""}, {"user", "s", ""}, {"Straße", "", "v2"}, {"before the restore"}} {
		f := fingerprint(texts...)
		v.Fingerprints = append(v.Fingerprints, fingerprintVector{texts, f[:]})
	}
	at := func(key string, records ...Record) token {
		return token{fingerprint: fingerprint("users", "", ""), seq: uint64(len(records)), digest: digestOf(records...), key: []byte(key)}
	}
	restored := at("4", users...)
	restored.generation = fingerprint("before the restore")
	for _, k := range []token{at(""), at("1", users[0]), at("4", users...), at("passed over", users...), restored} {
		v.Tokens = append(v.Tokens, tokenVector{k.fingerprint[:], k.generation[:], k.seq, k.digest[:], hexBytes(k.key), k.appendTo(nil)})
	}
	good := at("1", users[0]).appendTo(nil)
	flipped := bytes.Clone(good)
	flipped[len(flipped)-1] ^= 1
	version := bytes.Clone(good)
	version[0] = 2
	v.Refused = []refusedVector{
		{"it is too short", good[:44]}, {"its version is not known", version}, {"a bit of its key is another", flipped}, {"it is cut off", good[:len(good)-1]},
		{"it has no key", at("", users[0]).appendTo(nil)},
	}
	v.Messages = messageVectors(t, users, at)
	v.Readings = readingVectors(t, users, at)
	return v
}

func wireRecord(r Record) *streamv1.Record {
	return &streamv1.Record{Key: r.Key, Value: r.Value, Bad: r.Bad}
}

func batchFrame(after token, upTo token, records ...Record) *streamv1.Frame {
	b := &streamv1.Batch{FirstSeq: after.seq + 1, Count: uint32(len(records)), Token: upTo.appendTo(nil), Digest: upTo.digest[:]}
	for _, r := range records {
		b.Records = append(b.Records, wireRecord(r))
	}
	return &streamv1.Frame{Frame: &streamv1.Frame_Batch{Batch: b}}
}

func endFrame(at token) *streamv1.Frame {
	return &streamv1.Frame{Frame: &streamv1.Frame_End{End: &streamv1.End{Count: at.seq, Digest: at.digest[:], Token: at.appendTo(nil)}}}
}

func messageVectors(t *testing.T, users []Record, at func(string, ...Record) token) (all []messageVector) {
	for _, m := range []struct {
		name string
		m    proto.Message
	}{
		{"a request from the start", &streamv1.ReadRequest{Stream: "users", Job: "j1", Epoch: 1, NextSeq: 1, MaxBatchBytes: 4718656, MaxBatchRecords: 4096}},
		{"a request after the first record", &streamv1.ReadRequest{Stream: "users", After: at("1", users[0]).appendTo(nil), NextSeq: 2, Job: "j1", Epoch: 7}},
		{"the first Mark of a stream", markFrame(at(""), 1, 4)},
		{"a Batch whose third record is bad", batchFrame(at(""), at("4", users...), users...)},
		{"a Drain at a shutdown", drainFrame("shutdown", 100*time.Millisecond)},
		{"a Drain at the stream's age", drainFrame("age", 0)},
		{"an End", endFrame(at("4", users...))},
	} {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m.m)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, messageVector{m.name, string(m.m.ProtoReflect().Descriptor().Name()), b})
	}
	return all
}

func readingVectors(t *testing.T, users []Record, at func(string, ...Record) token) []readingVector {
	start, one, four := at(""), at("1", users[0]), at("4", users...)
	frames := func(all ...*streamv1.Frame) (encoded []hexBytes) {
		for _, f := range all {
			encoded = append(encoded, mustMarshal(t, f))
		}
		return encoded
	}
	first, second := batchFrame(start, one, users[0]), batchFrame(one, four, users[1:]...)
	whole := []*streamv1.Frame{markFrame(start, 1, 0), first, second, endFrame(four)}
	// What is wrong at first, and right when it is asked for again.
	again := func(name string, wrong ...*streamv1.Frame) readingVector {
		return readingVector{name, []streamVector{
			{NextSeq: 1, Frames: frames(append([]*streamv1.Frame{markFrame(start, 1, 0), first}, wrong...)...)},
			{After: one.appendTo(nil), NextSeq: 2, Frames: frames(markFrame(one, 2, 0), second, endFrame(four))},
		}, "complete", 4}
	}
	wrong := func(change func(*streamv1.Batch)) *streamv1.Frame {
		f := proto.CloneOf(second)
		change(f.GetBatch())
		return f
	}
	swapped := []Record{record(1, "2", "Grace"), record(2, "1", "Ada")}
	lessByOne := at("2", users[:2]...)
	lessByOne.seq = 1
	notAll := at("1", users[0])
	notAll.seq = 5
	return []readingVector{
		{"a stream that is read in one go", []streamVector{{NextSeq: 1, Frames: frames(whole...)}}, "complete", 4},
		{"a stream without records", []streamVector{{NextSeq: 1, Frames: frames(markFrame(start, 1, 0), endFrame(start))}}, "complete", 0},
		{"frames of an unknown kind are passed over", []streamVector{{NextSeq: 1, Frames: append(frames(whole[0]), slices.Concat([]hexBytes{{0x7a, 0}}, frames(whole[1:]...))...)}}, "complete", 4},
		{"a mark in the middle moves the position", []streamVector{
			{NextSeq: 1, Frames: frames(markFrame(start, 1, 0), first, markFrame(at("1 and on", users[0]), 2, 0)), Code: "UNAVAILABLE"},
			{After: at("1 and on", users[0]).appendTo(nil), NextSeq: 2, Frames: frames(markFrame(at("1 and on", users[0]), 2, 0), second, endFrame(four))},
		}, "complete", 4},
		{"a drain is no end", []streamVector{
			{NextSeq: 1, Frames: frames(markFrame(start, 1, 0), first, drainFrame("age", 0))},
			{After: one.appendTo(nil), NextSeq: 2, Frames: frames(markFrame(one, 2, 0), second, endFrame(four))},
		}, "complete", 4},
		again("OK without End is no end"),
		again("a batch that skips a record is not taken", wrong(func(b *streamv1.Batch) { b.FirstSeq++ })),
		again("a batch whose count is wrong is not taken", wrong(func(b *streamv1.Batch) { b.Count-- })),
		again("a batch with another digest is not taken", wrong(func(b *streamv1.Batch) { b.Digest[3] ^= 4 })),
		again("a batch with a changed value is not taken", wrong(func(b *streamv1.Batch) { b.Records[2].Value = []byte("edsger") })),
		again("a batch without a token is not taken", wrong(func(b *streamv1.Batch) { b.Token = nil })),
		again("a bad record with a value is not taken", wrong(func(b *streamv1.Batch) { b.Records[1].Value = []byte("x") })),
		again("a record without a key is not taken", wrong(func(b *streamv1.Batch) { b.Records[0].Key = nil })),
		again("a mark that skips a record is not taken", markFrame(at("2", users[:2]...), 3, 0)),
		{"a refusal for good is final", []streamVector{{NextSeq: 1, Code: "INVALID_ARGUMENT", Reason: ReasonBadToken}}, ReasonBadToken, 0},
		{"an outage is not", []streamVector{{NextSeq: 1, Code: "UNAVAILABLE", Reason: ReasonDraining}, {NextSeq: 1, Frames: frames(whole...)}}, "complete", 4},
		{"keys that do not grow, with the right digest, are the source's fault", []streamVector{
			{NextSeq: 1, Frames: frames(markFrame(start, 1, 0), batchFrame(start, at("1", swapped...), swapped...))}}, ReasonOutOfOrder, 0},
		{"an End with another number is final", []streamVector{{NextSeq: 1, Frames: frames(markFrame(start, 1, 0), first, endFrame(notAll))}}, ReasonIncomplete, 1},
		{"an End with another digest is final", []streamVector{{NextSeq: 1, Frames: frames(markFrame(start, 1, 0), first, endFrame(lessByOne))}}, ReasonIncomplete, 1},
	}
}

// TestProtocolVectors: the file is what producers and readers in other languages are tested with, and what readers' databases hold. If it changes,
// so has the protocol: positions that were stored before are worth nothing, and jobs fail in the middle.
func TestProtocolVectors(t *testing.T) {
	got, err := json.MarshalIndent(protocolVectors(t), "", " ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	if *updateProtocol {
		if err := os.MkdirAll(filepath.Dir(vectorsFile), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(vectorsFile, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(vectorsFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		for i, line := range bytes.Split(got, []byte("\n")) {
			if lines := bytes.Split(want, []byte("\n")); i >= len(lines) || !bytes.Equal(line, lines[i]) {
				t.Fatalf("%s differs from line %d on: this package now makes %s", vectorsFile, i+1, line)
			}
		}
		t.Fatalf("%s has more than this package makes", vectorsFile)
	}
}

// TestProtocolVectorsTokens: what is refused is the part that making the file does not show.
func TestProtocolVectorsTokens(t *testing.T) {
	v := readVectors(t)
	for _, k := range v.Tokens {
		got, err := parseToken(k.Token)
		if err != nil || got.seq != k.Seq || !bytes.Equal(got.key, k.Key) || !bytes.Equal(got.digest[:], k.Digest) {
			t.Errorf("token %x: got %+v, %v", []byte(k.Token), got, err)
		}
	}
	for _, k := range v.Refused {
		if _, err := parseToken(k.Token); !errors.Is(err, ErrBadToken) {
			t.Errorf("a token is taken although %s: %v", k.Why, err)
		}
	}
}

func readVectors(t *testing.T) (v vectors) {
	t.Helper()
	b, err := os.ReadFile(vectorsFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// TestProtocolVectorsReadings plays what producers send to our reader.
func TestProtocolVectorsReadings(t *testing.T) {
	for _, reading := range readVectors(t).Readings {
		t.Run(reading.Name, func(t *testing.T) {
			t.Parallel()
			producer := &vectorProducer{t: t, streams: reading.Streams}
			reader, err := NewReader(ReaderConfig{Dial: producer.start(), Stream: "users", Retry: Backoff{Min: time.Millisecond, Max: time.Millisecond},
				Logger: slog.New(slog.DiscardHandler)}, Checkpoint{})
			if err != nil {
				t.Fatal(err)
			}
			defer reader.Close()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			for err == nil {
				_, err = reader.Next(ctx)
			}
			outcome := Reason("complete")
			if err != io.EOF {
				for reason, sentinel := range sentinels {
					if errors.Is(err, sentinel) {
						outcome = reason
					}
				}
				if errors.Is(err, ErrIncomplete) {
					outcome = ReasonIncomplete
				}
			}
			if outcome != reading.Outcome || reader.Progress().Records != reading.Records {
				t.Errorf("the outcome is %s after %d records (%v), and should be %s after %d", outcome, reader.Progress().Records, err, reading.Outcome, reading.Records)
			}
		})
	}
}

// vectorProducer answers each request with what the vector says.
type vectorProducer struct {
	streamv1.UnimplementedStreamServer
	t       *testing.T
	streams []streamVector
	next    int
}

func (p *vectorProducer) start() func(context.Context, Job) (grpc.ClientConnInterface, error) {
	listener, server := bufconn.Listen(1<<20), grpc.NewServer()
	streamv1.RegisterStreamServer(server, p)
	done := make(chan struct{})
	go func() { defer close(done); server.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///producer", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { conn.Close(); server.Stop(); <-done })
	return func(context.Context, Job) (grpc.ClientConnInterface, error) { return conn, nil }
}

// Read is called by one reader, for one stream after the other.
func (p *vectorProducer) Read(req *streamv1.ReadRequest, out grpc.ServerStreamingServer[streamv1.Frame]) error {
	if p.next == len(p.streams) {
		p.t.Errorf("the reader asks for record %d once more", req.GetNextSeq())
		return statusOf(Halt(errors.New("the vector has no more streams")))
	}
	s := p.streams[p.next]
	p.next++
	if !bytes.Equal(req.GetAfter(), s.After) || req.GetNextSeq() != s.NextSeq {
		p.t.Errorf("request %d asks for record %d after %x, and should ask for record %d after %x", p.next, req.GetNextSeq(), req.GetAfter(), s.NextSeq, []byte(s.After))
	}
	for _, frame := range s.Frames {
		f := new(streamv1.Frame)
		if err := proto.Unmarshal(frame, f); err != nil { // what the message does not know, it sends as it is
			return err
		}
		if err := out.Send(f); err != nil {
			return err
		}
	}
	if s.Code == "" {
		return nil
	}
	var code codes.Code
	if err := code.UnmarshalJSON([]byte(`"` + s.Code + `"`)); err != nil {
		return err
	}
	if s.Reason == "" {
		return status.Error(code, "as the vector says")
	}
	return newStatus(code, s.Reason, "as the vector says", time.Millisecond)
}
