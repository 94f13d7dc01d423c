package stream

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	streamv1 "github.com/levada-io/levada/proto/levada/stream/v1"
)

func batchOf(records ...*streamv1.Record) *streamv1.Frame {
	return &streamv1.Frame{Frame: &streamv1.Frame_Batch{Batch: &streamv1.Batch{
		FirstSeq: 7, Count: uint32(len(records)), Token: []byte("token"), Digest: make([]byte, 16), Records: records}}}
}

func mustMarshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.MarshalOptions{AllowPartial: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// mayBeRefused says why our decoder refuses a frame that the generated one takes; "" if it has no reason to.
func mayBeRefused(raw []byte, pb *streamv1.Frame) string {
	frames := 0
	for b := raw; len(b) > 0; {
		number, kind, n := protowire.ConsumeTag(b)
		m := protowire.ConsumeFieldValue(number, kind, b[n:])
		if number <= fieldFrameEnd && kind == protowire.BytesType {
			frames++
		}
		b = b[n+m:]
	}
	if frames > 1 {
		return "it holds two frames"
	}
	batch := pb.GetBatch()
	if batch == nil {
		return ""
	}
	switch {
	case int(batch.GetCount()) != len(batch.GetRecords()):
		return "another count"
	case batch.GetFirstSeq() == 0, len(batch.GetDigest()) != 16, len(batch.GetToken()) == 0:
		return "a field is not set"
	}
	for _, r := range batch.GetRecords() {
		if len(r.GetKey()) == 0 || r.GetBad() != "" && len(r.GetValue()) > 0 {
			return "a record that cannot be"
		}
	}
	return ""
}

// FuzzFrame holds our decoder against the generated one: the same verdict, but for frames that contradict themselves, and the same content.
func FuzzFrame(f *testing.F) {
	whole := batchOf(&streamv1.Record{Key: []byte("a"), Value: []byte("one")}, &streamv1.Record{Key: []byte("b"), Bad: "panic: no"}, &streamv1.Record{Key: []byte("c")})
	f.Add(mustMarshal(f, whole))
	f.Add(mustMarshal(f, batchOf()))
	f.Add(append(mustMarshal(f, whole), mustMarshal(f, whole)...))
	f.Add(append(mustMarshal(f, markFrame(token{seq: 3, key: []byte("k")}, 4, 9)), mustMarshal(f, whole)...))
	f.Add(mustMarshal(f, markFrame(token{seq: 3, key: []byte("k")}, 4, 9)))
	f.Add(mustMarshal(f, drainFrame("age", time.Second)))
	f.Add(mustMarshal(f, &streamv1.Frame{Frame: &streamv1.Frame_End{End: &streamv1.End{Count: 3, Digest: make([]byte, 16), Token: []byte("t")}}}))
	f.Add([]byte{})
	f.Add([]byte{fieldFrameEnd << 3, 1})                                                  // a number where End should be
	f.Add([]byte{fieldFrameBatch<<3 | 5, 1, 2, 3, 4})                                     // and where Batch should be
	f.Add([]byte{5<<3 | 3, 5<<3 | 4})                                                     // a group of a kind that came later
	f.Add([]byte{fieldFrameMark<<3 | 2, 2, 0x0a, 5})                                      // a mark that is cut
	f.Add([]byte{fieldFrameBatch<<3 | 2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}) // a length that never ends
	bad := protowire.AppendBytes([]byte{fieldRecordKey<<3 | 2, 1, 'k', fieldRecordBad<<3 | 2}, []byte{0xff, 0xfe})
	f.Add(protowire.AppendBytes([]byte{fieldFrameBatch<<3 | 2}, protowire.AppendBytes([]byte{fieldBatchRecords<<3 | 2}, bad))) // no text
	f.Fuzz(func(t *testing.T, raw []byte) {
		var pb streamv1.Frame
		want := proto.Unmarshal(raw, &pb)
		var got frame
		err := got.parse(raw)
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("an error that is no ErrCorrupt: %v", err)
		}
		switch {
		case want != nil && err == nil:
			t.Fatalf("taken, and the generated code refuses it: %v", want)
		case want != nil:
			return
		case err != nil:
			if why := mayBeRefused(raw, &pb); why == "" {
				t.Fatalf("refused (%v), and the generated code takes it: %v", err, &pb)
			}
			return
		}
		if why := mayBeRefused(raw, &pb); why != "" {
			t.Fatalf("taken, though %s: %v", why, &pb)
		}
		if got.size != len(raw) {
			t.Errorf("size %d of %d", got.size, len(raw))
		}
		kind := protowire.Number(0)
		switch pb.GetFrame().(type) {
		case *streamv1.Frame_Batch:
			kind = fieldFrameBatch
		case *streamv1.Frame_Mark:
			kind = fieldFrameMark
		case *streamv1.Frame_Drain:
			kind = fieldFrameDrain
		case *streamv1.Frame_End:
			kind = fieldFrameEnd
		}
		if got.kind != kind {
			t.Fatalf("kind %d, not %d", got.kind, kind)
		}
		if kind > fieldFrameBatch && !proto.Equal(&got.other, &pb) {
			t.Fatalf("%v, not %v", &got.other, &pb)
		}
		if kind != fieldFrameBatch {
			return
		}
		batch := pb.GetBatch()
		if got.firstSeq != batch.GetFirstSeq() || !bytes.Equal(got.token, batch.GetToken()) || !bytes.Equal(got.digest, batch.GetDigest()) {
			t.Errorf("batch %d %x %x, not %v", got.firstSeq, got.token, got.digest, batch)
		}
		for i, r := range batch.GetRecords() {
			g := got.records[i]
			if g.Seq != batch.GetFirstSeq()+uint64(i) || !bytes.Equal(g.Key, r.GetKey()) || !bytes.Equal(g.Value, r.GetValue()) || g.Bad != r.GetBad() {
				t.Errorf("record %+v, not %v", g, r)
			}
			var a, b Digest
			a.Add(g)
			b.add(g.Seq, len(g.Key), len(g.Value), g.sum)
			if a != b {
				t.Errorf("the checksum of record %d is another off the wire", g.Seq)
			}
		}
		// Whatever it holds, checking it must not panic, and only the right digest passes.
		after, err := got.check(got.firstSeq, nil, Digest{})
		if err == nil && !bytes.Equal(after[:], got.digest) {
			t.Error("a wrong digest passed")
		}
	})
}

// A frame may be read again and again into the same variable: nothing of the one before is left.
func TestFrameLeavesNothingBehind(t *testing.T) {
	var f frame
	frames := []*streamv1.Frame{
		batchOf(&streamv1.Record{Key: []byte("a"), Value: []byte("1")}, &streamv1.Record{Key: []byte("b"), Bad: "no"}),
		drainFrame("age", time.Second), batchOf(), markFrame(token{}, 1, 0), batchOf(&streamv1.Record{Key: []byte("c")}),
		{Frame: &streamv1.Frame_End{End: &streamv1.End{Count: 1}}}, {},
	}
	for i := range 50 {
		pb := frames[(i*i+i/3)%len(frames)]
		if err := f.parse(mustMarshal(t, pb)); err != nil {
			t.Fatal(err)
		}
		if got, want := len(f.records), len(pb.GetBatch().GetRecords()); got != want {
			t.Fatalf("%d records, not %d", got, want)
		}
		for j, r := range pb.GetBatch().GetRecords() {
			if g := f.records[j]; !bytes.Equal(g.Key, r.GetKey()) || !bytes.Equal(g.Value, r.GetValue()) || g.Bad != r.GetBad() {
				t.Fatalf("record %+v, not %v", g, r)
			}
		}
		if pb.GetBatch() == nil && !proto.Equal(&f.other, pb) && f.kind != 0 {
			t.Fatalf("%v, not %v", &f.other, pb)
		}
	}
}

// script is a cursor of records whose values do what fuzzing says.
type script struct {
	what  byte
	value []byte
}

func (s *script) Next(context.Context) ([]byte, error) { panic("not called") }
func (s *script) Close() error                         { return nil }
func (s *script) Value(dst []byte) ([]byte, error) {
	switch s.what % 8 {
	case 1:
		panic(string(s.value))
	case 2:
		return nil, Skip(errors.New(string(s.value)))
	case 3:
		return append(dst, s.value...), errors.New("later")
	case 4: // memory of its own
		return append(bytes.Clone(dst), s.value...), nil
	case 5: // something half made before the panic
		_ = append(dst, s.value...)
		panic(errors.New("half"))
	default:
		return append(dst, s.value...), nil
	}
}

// FuzzFilling encodes records and holds what comes out against both decoders.
func FuzzFilling(f *testing.F) {
	f.Add([]byte("\x00\x03abc\x01\x02no\x02\x01x\x03\x00\x04\x05hello\x05\x02ab"), uint16(100), uint32(1000))
	f.Add(bytes.Repeat([]byte{0, 127}, 200), uint16(5), uint32(1000))
	f.Add(bytes.Repeat([]byte{0, 255}, 2000), uint16(200), uint32(1<<20))
	f.Add([]byte("\x06\xff\x06\x01a\x06\xff"), uint16(16000), uint32(1<<20))
	f.Add([]byte("\x01\x04\xff\xfe\x00\x80"), uint16(1), uint32(0))
	f.Fuzz(func(t *testing.T, data []byte, keyLen uint16, limit uint32) {
		at := token{seq: 41, key: []byte("!")}
		var fill filling
		fill.reset(at)
		want := []Record{}
		digest := at.digest
		for n := 0; len(data) >= 2 && n < 300; n++ {
			what, size := data[0], int(data[1])
			data = data[2:]
			value := data[:min(size, len(data))]
			data = data[len(value):]
			if what%8 == 6 {
				value = bytes.Repeat(value, 300) // lengths of three bytes among those of one
			}
			key := append(bytes.Repeat([]byte{'k'}, int(keyLen)%maxKey), fmt.Sprintf("%06d", n)...)
			before := fill.count
			bad, err := fill.add(&script{what, value}, key, int(limit))
			if what%8 == 3 {
				if err == nil || fill.count != before {
					t.Fatalf("an error of the value: %v, and %d records", err, fill.count)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			r := Record{Seq: 42 + uint64(len(want)), Key: key}
			mustBeBad := what%8 == 1 || what%8 == 2 || what%8 == 5
			tooLarge := len(value)+len(key) > int(limit)
			switch {
			case mustBeBad && bad == nil, tooLarge && bad == nil, errors.Is(bad, ErrTooLarge) && len(value)+len(key)+64 < int(limit):
				t.Fatalf("record %d of %d bytes, limit %d, kind %d: bad is %v", n, len(value), limit, what%8, bad)
			case bad != nil:
				r.Bad = bad.Error()
			default:
				r.Value = bytes.Clone(value)
			}
			want = append(want, r)
			digest.Add(r)
		}
		if fill.count != len(want) || fill.position.digest != digest || fill.position.seq != 41+uint64(len(want)) {
			t.Fatalf("position %d with digest %v, not %d with %v", fill.position.seq, fill.position.digest, 41+len(want), digest)
		}
		raw, err := proto.Marshal(fill.frame(fill.position.appendTo(nil)))
		if err != nil {
			t.Fatal(err)
		}
		var pb streamv1.Frame
		if err := proto.Unmarshal(raw, &pb); err != nil {
			t.Fatal(err)
		}
		var got frame
		if err := got.parse(raw); err != nil {
			t.Fatal(err)
		}
		after, err := got.check(42, []byte("!"), at.digest)
		if err != nil || after != digest {
			t.Fatalf("digest %v, not %v: %v", after, digest, err)
		}
		if len(got.records) != len(want) || len(pb.GetBatch().GetRecords()) != len(want) {
			t.Fatalf("%d and %d records, not %d", len(got.records), len(pb.GetBatch().GetRecords()), len(want))
		}
		for i, w := range want {
			g, p := got.records[i], pb.GetBatch().GetRecords()[i]
			if !bytes.Equal(g.Key, w.Key) || !bytes.Equal(p.GetKey(), w.Key) || !bytes.Equal(g.Value, w.Value) || !bytes.Equal(p.GetValue(), w.Value) {
				t.Fatalf("record %d: %+v and %v, not %+v", i, g, p, w)
			}
			if (g.Bad != "") != (w.Bad != "") || g.Bad != p.GetBad() || !utf8.ValidString(g.Bad) {
				t.Fatalf("record %d is bad: %q and %q, not %q", i, g.Bad, p.GetBad(), w.Bad)
			}
		}
	})
}

// FuzzToken: what is read as a token is one, and is written the same again.
func FuzzToken(f *testing.F) {
	whole := token{fingerprint: fingerprint("a"), generation: fingerprint("b"), seq: 5, digest: Digest{1}, key: []byte("key")}
	f.Add(whole.appendTo(nil), uint16(3))
	f.Add(token{}.appendTo(nil), uint16(60))
	f.Add([]byte{}, uint16(0))
	f.Add([]byte{2}, uint16(0))
	f.Add(make([]byte, tokenHead), uint16(300))
	f.Fuzz(func(t *testing.T, raw []byte, flip uint16) {
		given, err := parseToken(raw)
		if err != nil {
			if !errors.Is(err, ErrBadToken) {
				t.Fatal(err)
			}
			given = token{seq: binary.BigEndian.Uint64(append(raw, make([]byte, 8)...)), key: append([]byte("k"), raw...)}
			raw = given.appendTo(nil)
			if _, err := parseToken(raw); err != nil {
				t.Fatal(err)
			}
		}
		if again := given.appendTo(nil); !bytes.Equal(again, raw) {
			t.Errorf("%x became %x", raw, again)
		}
		damaged := bytes.Clone(raw)
		damaged[int(flip/8)%len(raw)] ^= 1 << (flip % 8)
		if _, err := parseToken(damaged); !errors.Is(err, ErrBadToken) {
			t.Errorf("a damaged token: %v", err)
		}
		if _, err := parseToken(raw[:len(raw)-1]); !errors.Is(err, ErrBadToken) {
			t.Errorf("a token that is cut: %v", err)
		}
	})
}

// FuzzClassify: whatever a status says, the verdict contradicts neither itself nor the rule.
func FuzzClassify(f *testing.F) {
	f.Add(uint32(codes.Internal), "stream terminated by RST_STREAM with error code: INTERNAL_ERROR", "", int64(0), []byte(nil))
	f.Add(uint32(codes.ResourceExhausted), "grpc: received message larger than max (558124867 vs. 4194304)", "", int64(0), []byte(nil))
	f.Add(uint32(codes.ResourceExhausted), "grpc: received message larger than max (99999999999999999999 vs. 4194304)", "", int64(0), []byte(nil))
	f.Add(uint32(codes.OutOfRange), "gone", string(ReasonPositionGone), int64(-5), []byte{1, 2, 3})
	f.Add(uint32(codes.Unavailable), "", string(ReasonDraining), int64(time.Hour), []byte("\x0a\x04type"))
	f.Add(uint32(99), "x", "y", int64(math.MinInt64), []byte(nil))
	f.Add(uint32(codes.Unimplemented), "unexpected HTTP status code received from server: 404 (Not Found); malformed header: missing HTTP content-type", "", int64(0), []byte(nil))
	f.Fuzz(func(t *testing.T, code uint32, message, reason string, after int64, junk []byte) {
		if code == 0 {
			return
		}
		st := &spb.Status{Code: int32(code), Message: strings.ToValidUTF8(message, "?")}
		if reason != "" {
			info, err := anypb.New(&errdetails.ErrorInfo{Domain: errorDomain, Reason: strings.ToValidUTF8(reason, "?")})
			if err != nil {
				t.Fatal(err)
			}
			st.Details = append(st.Details, info)
		}
		retry, err := anypb.New(&errdetails.RetryInfo{RetryDelay: durationpb.New(time.Duration(after))})
		if err != nil {
			t.Fatal(err)
		}
		retry.Value = append(retry.Value, junk...)
		st.Details = append(st.Details, retry, &anypb.Any{TypeUrl: string(junk), Value: junk})
		cut := Classify(status.ErrorProto(st))
		switch {
		case cut.Fatal && cut.Transport:
			t.Error("fatal, and the transport's fault")
		case cut.Err == nil:
			t.Error("no error")
		case cut.After < 0:
			t.Errorf("to be tried again %v ago", -cut.After)
		case codes.Code(code) == codes.Unavailable && cut.Fatal:
			t.Error("UNAVAILABLE, and fatal")
		case cut.Reason != "" && cut.Transport && codes.Code(code) != codes.Unavailable && codes.Code(code) != codes.Canceled && codes.Code(code) != codes.DeadlineExceeded:
			t.Error("the producer said why, and the transport is blamed")
		}
		if sentinel := sentinels[cut.Reason]; sentinel != nil && !errors.Is(cut.Err, sentinel) {
			t.Errorf("%v is no %v", cut.Err, sentinel)
		}
	})
}
