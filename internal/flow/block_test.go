package flow

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

// anyBlock draws a block with all that one may hold.
func anyBlock(t *rapid.T) *Block {
	b := &Block{
		Lane: rapid.String().Draw(t, "lane"), Lo: rapid.Uint64Range(1, 1<<60).Draw(t, "lo"), ByID: rapid.Bool().Draw(t, "byID"),
		Floor: rapid.Uint64().Draw(t, "floor"), Prev: rapid.Uint64().Draw(t, "prev"), Watermark: rapid.Int64().Draw(t, "watermark"),
	}
	n := rapid.IntRange(0, 20).Draw(t, "messages")
	b.Hi = b.Lo + uint64(n) + 5
	if rapid.Bool().Draw(t, "has spans") {
		b.Cover = []Span{{b.Lo, b.Lo + 1}, {b.Lo + 3, b.Hi}}
	}
	text := rapid.StringN(0, 30, 60)
	for i := range n {
		m := Message{
			ID: text.Draw(t, "id"), Pos: b.Lo + uint64(i), Value: rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "value"),
			EventTime: rapid.Int64Range(-1<<60, 1<<60).Draw(t, "event time"), Ingested: rapid.Int64Range(-1<<60, 1<<60).Draw(t, "ingested"),
		}
		m.Keys = rapid.SliceOfN(text, 0, 3).Draw(t, "keys")
		for range rapid.IntRange(0, 3).Draw(t, "headers") {
			m.Headers = AppendHeader(m.Headers, text.Draw(t, "name"), text.Draw(t, "value"))
		}
		m.Metadata = rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "metadata")
		b.Messages = append(b.Messages, m)
	}
	return b
}

func TestBlocksReadBackAsTheyWereWritten(t *testing.T) {
	var reused Encoder
	rapid.Check(t, func(t *rapid.T) {
		b := anyBlock(t)
		c := Compression(rapid.IntRange(0, int(LZ4)).Draw(t, "compression"))
		reused.Reset(b.Lo)
		for i := range b.Messages {
			m := &b.Messages[i]
			half := len(m.ID) / 2
			reused.AppendAs(m, m.ID[:half], m.ID[half:])
		}
		data, err := reused.Finish(b, c)
		if err != nil {
			t.Fatal(err)
		}
		data = bytes.Clone(data)
		if rapid.Bool().Draw(t, "detach") {
			reused.Detach(nil)
		}
		got, err := Decode(data)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(b, got, cmpopts.EquateEmpty()); d != "" {
			t.Fatal(d)
		}
		head, n, err := DecodeHead(data)
		if err != nil || n != len(b.Messages) || head.Lane != b.Lane || head.Lo != b.Lo || head.Hi != b.Hi {
			t.Fatalf("head is %+v, %d, %v", head, n, err)
		}
	})
}

// TestDamageIsNoticed flips every bit and cuts at every byte.
func TestDamageIsNoticed(t *testing.T) {
	for _, c := range []Compression{None, Zstd, Gzip, LZ4} {
		b := &Block{Lane: "in/0", Lo: 7, Hi: 9, Messages: []Message{{ID: "a", Pos: 7, Value: []byte("hello")}, {ID: "b", Pos: 9, Keys: []string{"k"}, Value: []byte("world")}}}
		data, err := Encode(b, c)
		if err != nil {
			t.Fatal(err)
		}
		data = bytes.Clone(data)
		for i := range data {
			if _, err := Decode(data[:i]); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%v cut at %d: %v", c, i, err)
			}
			for bit := range 8 {
				data[i] ^= 1 << bit
				if _, err := Decode(data); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNewer) {
					t.Errorf("%v with bit %d of byte %d flipped: %v", c, bit, i, err)
				}
				data[i] ^= 1 << bit
			}
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, c := range []Compression{None, Zstd, Gzip, LZ4} {
		data, err := Encode(&Block{Lane: "in/0", Lo: 7, Hi: 9, Cover: []Span{{7, 7}, {9, 9}}, Messages: []Message{{ID: "a", Pos: 7, Value: []byte("hello")}}}, c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(bytes.Clone(data), true)
	}
	f.Fuzz(func(t *testing.T, data []byte, mend bool) {
		if mend && len(data) >= headLen { // with a checksum that is right the rest is looked at
			sum := checksum(data)
			data = bytes.Clone(data)
			data[4], data[5], data[6], data[7] = byte(sum), byte(sum>>8), byte(sum>>16), byte(sum>>24)
		}
		b, err := Decode(data)
		if err != nil {
			return
		}
		for i := range b.Messages {
			if p := b.Messages[i].Pos; p < b.Lo || p > b.Hi {
				t.Fatalf("position %d is not within %d-%d", p, b.Lo, b.Hi)
			}
			for range b.Messages[i].Headers.All {
			}
		}
		again, err := Encode(b, None)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(again); err != nil {
			t.Fatalf("what was decoded cannot be encoded: %v", err)
		}
	})
}

// TestIDsAreInjective: two different origins never give one id, whatever a source calls its offsets.
func TestIDsAreInjective(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringMatching(`[a-z]([a-z0-9-]{0,3}[a-z0-9])?`)
		offset := rapid.StringMatching(`[a-z/%@.0-9]{0,8}`)
		type origin struct {
			vertex, partition, incarnation, offset string
			path                                   string
		}
		draw := func(label string) (origin, string) {
			o := origin{vertex: name.Draw(t, label+" vertex"), partition: offset.Draw(t, label+" partition"), incarnation: rapid.SampledFrom([]string{"1a", "b", "1a%40b"}).Draw(t, label+" incarnation"), offset: offset.Draw(t, label+" offset")}
			id := RootID(SourceLane(o.vertex, o.partition, o.incarnation), o.offset)
			for range rapid.IntRange(0, 3).Draw(t, label+" hops") {
				v, i := name.Draw(t, label+" hop"), rapid.IntRange(0, 12).Draw(t, label+" index")
				o.path += "|" + v + string(rune('a'+i))
				id = ChildID(id, v, i)
			}
			return o, id
		}
		a, idA := draw("a")
		b, idB := draw("b")
		if (a == b) != (idA == idB) {
			t.Fatalf("%+v is %s and %+v is %s", a, idA, b, idB)
		}
	})
	long := RootID("in/0", strings.Repeat("x", 1000))
	if len(long) > maxID || long == RootID("in/0", strings.Repeat("x", 1001)) {
		t.Fatalf("a long id is %s", long)
	}
	if lane := SourceLane("in", "a/b", ""); lane != "in/a/b" {
		t.Fatalf("a lane of a store without an incarnation is called %s, and no longer in/a/b", lane)
	}
}
