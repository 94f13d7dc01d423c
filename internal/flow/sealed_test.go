package flow_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/levada-io/levada/internal/flow"
)

var kinds = []flow.Compression{flow.None, flow.Gzip, flow.Zstd, flow.LZ4}

func drawBlock(t *rapid.T) *flow.Block {
	anyInt := rapid.OneOf(rapid.Int64(), rapid.SampledFrom([]int64{0, 1, -1, math.MinInt64, math.MaxInt64}))
	b := &flow.Block{
		Lane: rapid.String().Draw(t, "lane"), Lo: rapid.Uint64().Draw(t, "lo"), Floor: rapid.Uint64().Draw(t, "floor"), Prev: rapid.Uint64().Draw(t, "prev"),
		Watermark: anyInt.Draw(t, "watermark"), ByID: rapid.Bool().Draw(t, "by id"),
	}
	b.Hi = b.Lo + min(rapid.Uint64Range(0, 1000).Draw(t, "length"), math.MaxUint64-b.Lo)
	for at := b.Lo; rapid.IntRange(0, 2).Draw(t, "span") > 0; {
		lo := at + rapid.Uint64Range(0, 9).Draw(t, "from")
		hi := lo + rapid.Uint64Range(0, 9).Draw(t, "to")
		if lo < at || hi < lo || hi > b.Hi {
			break
		}
		b.Cover = append(b.Cover, flow.Span{Lo: lo, Hi: hi})
		if at = hi + 1; at == 0 {
			break
		}
	}
	b.Messages = make([]flow.Message, rapid.IntRange(0, 20).Draw(t, "messages"))
	for i := range b.Messages {
		m := &b.Messages[i]
		m.ID, m.Pos = rapid.String().Draw(t, "id"), rapid.Uint64Range(b.Lo, b.Hi).Draw(t, "pos")
		m.Value = rapid.SliceOf(rapid.Byte()).Draw(t, "value")
		m.Keys = rapid.SliceOfN(rapid.String(), 0, 3).Draw(t, "keys")
		m.EventTime, m.Ingested = anyInt.Draw(t, "event time"), anyInt.Draw(t, "ingested")
		for range rapid.IntRange(0, 2).Draw(t, "headers") {
			m.Headers = flow.AppendHeader(m.Headers, rapid.String().Draw(t, "name"), rapid.String().Draw(t, "header"))
		}
		m.Metadata = rapid.SliceOf(rapid.Byte()).Draw(t, "metadata")
	}
	return b
}

// plain makes what is empty nil, so that blocks can be compared.
func plain(b *flow.Block) *flow.Block {
	c := *b
	c.Messages = slices.Clone(b.Messages)
	for i := range c.Messages {
		m := &c.Messages[i]
		if len(m.Value) == 0 {
			m.Value = nil
		}
		if len(m.Keys) == 0 {
			m.Keys = nil
		}
		if len(m.Metadata) == 0 {
			m.Metadata = nil
		}
	}
	if len(c.Messages) == 0 {
		c.Messages = nil
	}
	return &c
}

// TestEncoderReuse encodes one block after the other with one encoder, ids in two parts: nothing of a block may leak into the next.
func TestEncoderReuse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var e flow.Encoder
		for range rapid.IntRange(1, 4).Draw(t, "blocks") {
			b := drawBlock(t)
			kind := rapid.SampledFrom(kinds).Draw(t, "compression")
			e.Reset(b.Lo)
			for i := range b.Messages {
				m := &b.Messages[i]
				at := rapid.IntRange(0, len(m.ID)).Draw(t, "cut")
				e.AppendAs(m, m.ID[:at], m.ID[at:])
			}
			data, err := e.Finish(b, kind)
			if err != nil {
				t.Fatal(err)
			}
			back, err := flow.Decode(bytes.Clone(data))
			if err != nil || !reflect.DeepEqual(plain(b), plain(back)) {
				t.Fatalf("%v; wrote\n%+v\nread\n%+v", err, plain(b), back)
			}
		}
	})
}

func sample() *flow.Block {
	b := &flow.Block{Lane: "cat/0@abc", Lo: 7 << 20, Hi: 9<<20 - 1, Cover: []flow.Span{{Lo: 7 << 20, Hi: 7<<20 + 3}, {Lo: 8 << 20, Hi: 9<<20 - 1}}, Floor: 7<<20 - 1, Prev: 5, Watermark: flow.NoWatermark}
	for i := range 5 {
		b.Messages = append(b.Messages, flow.Message{
			ID: fmt.Sprint("in/0/", i, "/cat"), Pos: b.Lo + uint64(i), Keys: []string{"a", ""}[:i%3%2+1], Value: []byte(strings.Repeat("water ", i)), EventTime: int64(i) * 1e9, Ingested: 1e18,
			Headers: flow.AppendHeader(nil, "name", "value"), Metadata: []byte{1, 2},
		})
	}
	return b
}

// seal gives bytes that look like a block the checksum of one, so that what lies behind it is tried too.
func seal(data []byte) []byte {
	if len(data) < 8 {
		return data
	}
	data = bytes.Clone(data)
	data[0], data[1] = 'L', 'B'
	table := crc32.MakeTable(crc32.Castagnoli)
	binary.LittleEndian.PutUint32(data[4:], crc32.Update(crc32.Checksum(data[:4], table), table, data[8:]))
	return data
}

// FuzzSealed decodes blocks whose checksum is right though their writer was not.
func FuzzSealed(f *testing.F) {
	for _, kind := range kinds {
		for _, b := range []*flow.Block{sample(), {Lane: "x", Lo: 1, Hi: 1}} {
			data, err := flow.Encode(b, kind)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(bytes.Clone(data))
		}
	}
	f.Add([]byte("LB\x01\x00\x00\x00\x00\x00\x01a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = flow.Decode(data)
		data = seal(data)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		b, err := flow.Decode(data)
		runtime.ReadMemStats(&after)
		if len(data) > 3 && data[3]&^0x80 == byte(flow.None) {
			// A message is about 200 bytes in memory and at least 6 in a block.
			if used := after.TotalAlloc - before.TotalAlloc; used > uint64(64*len(data)+64<<10) {
				t.Fatalf("%d bytes made it allocate %d", len(data), used)
			}
		}
		if err != nil {
			if !errors.Is(err, flow.ErrCorrupt) && !errors.Is(err, flow.ErrNewer) {
				t.Fatalf("%v is neither ErrCorrupt nor ErrNewer", err)
			}
			return
		}
		again, err := flow.Encode(b, flow.None)
		if err != nil {
			t.Fatal(err)
		}
		back, err := flow.Decode(again)
		if err != nil || !reflect.DeepEqual(plain(b), plain(back)) {
			t.Fatalf("%v: a block that was read is another when it is written:\n%+v\n%+v", err, plain(b), back)
		}
		for _, m := range b.Messages {
			for range m.Headers.All {
			}
		}
	})
}

func TestHeaders(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var h flow.Headers
		var want [][2]string
		for range rapid.IntRange(0, 5).Draw(t, "headers") {
			pair := [2]string{rapid.SampledFrom([]string{"", "a", "b", "ü"}).Draw(t, "name"), rapid.String().Draw(t, "value")}
			want = append(want, pair)
			h = flow.AppendHeader(h, pair[0], pair[1])
		}
		var got [][2]string
		for n, v := range h.All {
			got = append(got, [2]string{n, v})
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("wrote %q, read %q", want, got)
		}
		for _, name := range []string{"", "a", "b", "ü", "none"} {
			i := slices.IndexFunc(want, func(p [2]string) bool { return p[0] == name })
			if v, ok := h.Get(name); ok != (i >= 0) || ok && v != want[i][1] {
				t.Fatalf("%q is %q, %v", name, v, ok)
			}
		}
		// Whatever is cut off, the rest is read as far as it goes.
		for i := range h {
			n := 0
			for name, v := range h[:i].All {
				if want[n] != [2]string{name, v} {
					t.Fatalf("cut after %d: %q is %q", i, name, v)
				}
				n++
			}
		}
	})
}
