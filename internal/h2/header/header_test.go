package header

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2/hpack"
	"pgregory.net/rapid"
)

// TestSameAsWithoutMemory sends blocks over two connections, with fields that come again and fields that do not, tables that are resized, and readers that give up
// on lists that are too large: a Reader must give what a decoder without a memory gives, and what a Writer writes must decode to what it was given.
func TestSameAsWithoutMemory(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		var wire bytes.Buffer
		peer := hpack.NewEncoder(&wire)
		reader, plain := NewReader(4096, 2048), hpack.NewDecoder(4096, nil)
		writer, far := NewWriter(4096), hpack.NewDecoder(4096, nil)
		names := rapid.SampledFrom([]string{":method", ":path", "content-type", "user-agent", "grpc-timeout", "x-a", "x-b", "x-long", "authorization"})
		values := rapid.SampledFrom([]string{"a", "b", "/a.B/C", "application/grpc", "1S", strings.Repeat("v", 600), strings.Repeat("w", 1500)})
		var blocks [][]byte
		for range rapid.IntRange(1, 60).Draw(r, "blocks") {
			var block []byte
			if len(blocks) > 0 && rapid.Bool().Draw(r, "repeat") {
				// The same bytes, whatever they mean by now: a block that only has indexes and literals which are not added.
				block = rapid.SampledFrom(blocks).Draw(r, "block")
			} else {
				if rapid.IntRange(0, 9).Draw(r, "resize") == 0 {
					peer.SetMaxDynamicTableSize(rapid.SampledFrom([]uint32{0, 100, 4096}).Draw(r, "size"))
				}
				wire.Reset()
				for range rapid.IntRange(0, 6).Draw(r, "fields") {
					f := Field{Name: names.Draw(r, "name"), Value: values.Draw(r, "value"), Sensitive: rapid.Bool().Draw(r, "sensitive")}
					if err := peer.WriteField(f); err != nil {
						r.Fatal(err)
					}
				}
				block = bytes.Clone(wire.Bytes())
				if scan(block) == leaves {
					blocks = append(blocks, block)
				}
			}
			want, wantErr := plain.DecodeFull(block)
			set, err := reader.Read(block)
			if (err != nil) != (wantErr != nil) {
				r.Fatalf("error %v, want %v", err, wantErr)
			}
			if err != nil {
				return // the connection is at its end
			}
			size := 0
			for _, f := range want {
				size += len(f.Name) + len(f.Value) + 32
			}
			if set.TooLarge != (size > 2048) {
				r.Fatalf("TooLarge is %v for %d bytes", set.TooLarge, size)
			}
			if set.TooLarge {
				continue
			}
			if diff := cmp.Diff(plainFields(want), plainFields(set.Fields)); diff != "" {
				r.Fatalf("read (-want +got):\n%s", diff)
			}
			if rapid.IntRange(0, 9).Draw(r, "resize ours") == 0 {
				writer.SetTableSize(rapid.SampledFrom([]uint32{0, 100, 4096}).Draw(r, "size"))
			}
			out := writer.Block(set)
			if rapid.IntRange(0, 3).Draw(r, "changed") == 0 {
				got, err := far.DecodeFull(out)
				if err != nil || len(got) != len(want) {
					r.Fatalf("written %v, %v", got, err)
				}
				out = writer.Fields(append(set.Fields[:len(set.Fields):len(set.Fields)], Field{Name: "x-added", Value: values.Draw(r, "value")}))
				want = append(want, Field{Name: "x-added", Value: ""})
			}
			got, err := far.DecodeFull(out)
			if err != nil {
				r.Fatal(err)
			}
			if len(got) != len(want) {
				r.Fatalf("wrote %v, want %v", got, want)
			}
			for i := range got {
				if got[i].Name != want[i].Name || want[i].Name != "x-added" && got[i].Value != want[i].Value {
					r.Fatalf("wrote %v, want %v", got[i], want[i])
				}
			}
		}
	})
}

func plainFields(fields []Field) []Field {
	out := []Field{}
	for _, f := range fields {
		out = append(out, Field{Name: f.Name, Value: f.Value})
	}
	return out
}

// TestAgain: what repeats costs nothing.
func TestAgain(t *testing.T) {
	var wire bytes.Buffer
	peer := hpack.NewEncoder(&wire)
	reader, writer := NewReader(4096, 8192), NewWriter(4096)
	send := func() *Set {
		wire.Reset()
		for _, f := range []Field{{Name: ":method", Value: "POST"}, {Name: ":path", Value: "/shop.Orders/Get"}, {Name: "te", Value: "trailers"}} {
			if err := peer.WriteField(f); err != nil {
				t.Fatal(err)
			}
		}
		set, err := reader.Read(wire.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		writer.Block(set)
		return set
	}
	for range 3 {
		send()
	}
	first := send()
	if !first.Cached() || send() != first {
		t.Error("the same block gave another set")
	}
	if n := testing.AllocsPerRun(100, func() { send() }); n > 0 {
		t.Errorf("%v allocations for a block that comes again", n)
	}
}

func FuzzReader(f *testing.F) {
	f.Add([]byte{0x82, 0x86, 0x84}, []byte{0x40, 1, 'a', 1, 'b'})
	f.Add([]byte{0x3f, 0xe1, 0x1f}, []byte{0x10, 1, 'a', 1, 'b'})
	f.Add([]byte{0x00, 0x7f, 0xff}, []byte{0xff, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		reader, plain := NewReader(4096, 1<<20), hpack.NewDecoder(4096, nil)
		plain.SetMaxStringLength(maxString(1 << 20))
		for _, block := range [][]byte{a, b, a, a, b, b, a} {
			want, wantErr := plain.DecodeFull(block)
			set, err := reader.Read(block)
			if (err == nil) != (wantErr == nil) {
				t.Fatalf("%v, want %v", err, wantErr)
			}
			if err != nil {
				return
			}
			if diff := cmp.Diff(plainFields(want), plainFields(set.Fields)); diff != "" && !set.TooLarge {
				t.Fatal(diff)
			}
			set.Request()
			set.Response()
		}
	})
}

func TestRequests(t *testing.T) {
	good := []Field{{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: "/a.B/C"}, {Name: ":authority", Value: "x"}}
	with := func(more ...Field) []Field { return append(good[:len(good):len(good)], more...) }
	for name, test := range map[string]struct {
		fields []Field
		bad    bool
	}{
		"good":                    {good, false},
		"te":                      {with(Field{Name: "te", Value: "trailers"}), false},
		"host that says the same": {with(Field{Name: "host", Value: "x"}), false},
		"bytes above ASCII":       {with(Field{Name: "x", Value: "\xc3\xa4"}), false},
		"no method":               {good[1:], true},
		"no path":                 {append(good[:2:2], good[3]), true},
		"two paths":               {with(good[2]), true},
		"path without slash":      {append(good[:2:2], Field{Name: ":path", Value: "a.B/C"}, good[3]), true},
		"pseudo after regular":    {append([]Field{{Name: "a", Value: "b"}}, good...), true},
		"unknown pseudo":          {with(Field{Name: ":protocol", Value: "websocket"}), true},
		"status in a request":     {with(Field{Name: ":status", Value: "200"}), true},
		"upper case":              {with(Field{Name: "X-A", Value: "b"}), true},
		"CR LF":                   {with(Field{Name: "x", Value: "a\r\nb: c"}), true},
		"NUL":                     {with(Field{Name: "x", Value: "a\x00"}), true},
		"space at the end":        {with(Field{Name: "x", Value: "a "}), false},
		"space in the method":     {append([]Field{{Name: ":method", Value: "POST "}}, good[1:]...), true},
		"space in a name":         {with(Field{Name: "x y", Value: "a"}), true},
		"empty name":              {with(Field{Name: "", Value: "a"}), true},
		"connection":              {with(Field{Name: "connection", Value: "close"}), true},
		"transfer-encoding":       {with(Field{Name: "transfer-encoding", Value: "chunked"}), true},
		"te other than trailers":  {with(Field{Name: "te", Value: "gzip"}), true},
		"another host":            {with(Field{Name: "host", Value: "y"}), true},
		"two lengths":             {with(Field{Name: "content-length", Value: "1"}, Field{Name: "content-length", Value: "2"}), true},
		"a length that is a word": {with(Field{Name: "content-length", Value: "one"}), true},
		"a length with a plus":    {with(Field{Name: "content-length", Value: "+1"}), true},
		"CONNECT with a path":     {append([]Field{{Name: ":method", Value: "CONNECT"}}, good[1:]...), true},
		"CONNECT":                 {[]Field{{Name: ":method", Value: "CONNECT"}, {Name: ":authority", Value: "x"}}, false},
		"OPTIONS *":               {[]Field{{Name: ":method", Value: "OPTIONS"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: "*"}}, false},
	} {
		s := &Set{Fields: test.fields}
		s.Err = s.check()
		if err := s.Request().Err; (err != nil) != test.bad {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTimeouts(t *testing.T) {
	for text, want := range map[string]time.Duration{"1n": 1, "99999999m": 99999999 * time.Millisecond, "5S": 5 * time.Second, "2M": 2 * time.Minute,
		"3H": 3 * time.Hour, "7u": 7 * time.Microsecond, "0m": 0, "99999999H": 1<<63 - 1} {
		if d, ok := parseTimeout(text); !ok || d != want {
			t.Errorf("%s is %v, %v", text, d, ok)
		}
	}
	for _, text := range []string{"", "1", "m", "-1m", "1.5S", "100000000m", "1s", " 1m", "1h"} {
		if d, ok := parseTimeout(text); ok {
			t.Errorf("%q is %v", text, d)
		}
	}
	rapid.Check(t, func(r *rapid.T) {
		d := time.Duration(rapid.Int64Range(1, 1<<62).Draw(r, "timeout"))
		text := FormatTimeout(d)
		back, ok := parseTimeout(text)
		if !ok || back < d || back > d+d/1000 && back > d+time.Hour {
			r.Fatalf("%v is written %s, which is %v, %v", d, text, back, ok)
		}
	})
}

// Libraries of gRPC send metadata and status messages with space around them as they are. A proxy that called this malformed would replace a backend's
// status by INTERNAL, and count the call against its client.
func TestSpaceAroundAValueIsNotMalformed(t *testing.T) {
	for _, test := range []struct{ name, value, want string }{
		{"x", " a b\t", "a b"},
		{"x", "  ", ""},
		{"te", " trailers", "trailers"},
		{"grpc-message", "no such order: ", "no such order:%20"},
		{"grpc-message", " \ta a ", "%20%09a a%20"},
		{"grpc-message", "  ", "%20%20"},
		{"grpc-message", "", ""},
	} {
		s := &Set{Fields: []Field{{Name: test.name, Value: test.value}}}
		if err := s.check(); err != nil || s.Fields[0].Value != test.want {
			t.Errorf("%s: %q became %q (%v), not %q", test.name, test.value, s.Fields[0].Value, err, test.want)
		}
	}
}

// TestSummaryDescribesTheSameRequest: all that Request says stays, of the fields what describes the call.
func TestSummaryDescribesTheSameRequest(t *testing.T) {
	s := &Set{Fields: []Field{{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "https"}, {Name: ":path", Value: "/a.B/C"}, {Name: ":authority", Value: "example.org"},
		{Name: "content-type", Value: "application/grpc"}, {Name: "grpc-timeout", Value: "3S"}, {Name: "user-agent", Value: "lark/1.0"}, {Name: "authorization", Value: strings.Repeat("t", 9000)}}, Size: 9500}
	d := s.Summary()
	if *d.Request() != *s.Request() {
		t.Errorf("the request is %+v, and was %+v", *d.Request(), *s.Request())
	}
	if agent, _ := d.Get("user-agent"); agent != "lark/1.0" || d.Size > 300 {
		t.Errorf("user-agent %q, %d bytes", agent, d.Size)
	}
	if _, ok := d.Get("authorization"); ok {
		t.Error("the large field is still there")
	}
}
