package header

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2/hpack"
	"pgregory.net/rapid"
)

// TestPiecesAreTheBlock: a block in pieces, cut anywhere, gives what it gives as a whole, and leaves the table as the sender's is: also if a string in it is longer
// than the list may be. Otherwise the streams that come after it on the connection get wrong headers.
func TestPiecesAreTheBlock(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		const limit = 16 << 10
		var wire bytes.Buffer
		peer := hpack.NewEncoder(&wire)
		reader, plain := NewReader(4096, limit), hpack.NewDecoder(4096, nil)
		reader.KeepStatus()
		names := rapid.SampledFrom([]string{":status", "grpc-status", "x-a", "x-b", "x-c", strings.Repeat("n", 9000)})
		values := rapid.SampledFrom([]string{"", "a", "b", "200", strings.Repeat("v", 600), strings.Repeat("~", 5000), strings.Repeat("w", 20000), strings.Repeat("{", 20000)})
		for range rapid.IntRange(1, 10).Draw(r, "blocks") {
			wire.Reset()
			size := 0
			for range rapid.IntRange(0, 6).Draw(r, "fields") {
				f := Field{Name: names.Draw(r, "name"), Value: values.Draw(r, "value"), Sensitive: rapid.Bool().Draw(r, "sensitive")}
				if err := peer.WriteField(f); err != nil {
					r.Fatal(err)
				}
				size += len(f.Name) + len(f.Value) + fieldRoom
			}
			want, err := plain.DecodeFull(wire.Bytes())
			if err != nil {
				r.Fatal(err)
			}
			var set *Set
			if rapid.Bool().Draw(r, "in pieces") || wire.Len() > 16<<10 {
				reader.Begin()
				for block := bytes.Clone(wire.Bytes()); len(block) > 0; {
					n := rapid.IntRange(0, min(len(block), 16<<10)).Draw(r, "piece")
					if err := reader.Piece(block[:n]); err != nil {
						r.Fatal(err)
					}
					block = block[n:]
				}
				set, err = reader.End()
			} else {
				set, err = reader.Read(wire.Bytes())
			}
			if err != nil {
				r.Fatal(err)
			}
			if set.TooLarge != (size > limit) {
				r.Fatalf("TooLarge is %v for %d bytes", set.TooLarge, size)
			}
			if set.TooLarge {
				if i := slices.IndexFunc(want, func(f Field) bool { return f.Name == "grpc-status" }); i >= 0 && len(want[i].Value) <= 600 {
					if got, _ := set.Get("grpc-status"); got != want[i].Value {
						r.Fatalf("the status is %.100q, want %q", got, want[i].Value)
					}
				}
				continue
			}
			if diff := cmp.Diff(plainFields(want), plainFields(set.Fields)); diff != "" {
				r.Fatalf("read (-want +got):\n%s", diff)
			}
		}
	})
}

// TestPiecesThatDoNotEnd: a block that breaks off is an error, and not a panic or a block.
func TestPiecesThatDoNotEnd(t *testing.T) {
	for _, block := range [][]byte{{0x40}, {0x40, 1, 'a'}, {0x40, 1, 'a', 5, 'b'}, {0x40, 1, 'a', 0x7f, 0xff, 0xff, 0x7f, 'b'}, {0xff}, bytes.Repeat([]byte{0xff}, 20)} {
		reader := NewReader(4096, 4096)
		reader.Begin()
		err := reader.Piece(block)
		if err == nil {
			_, err = reader.End()
		}
		if err == nil {
			t.Errorf("%x is a block", block)
		}
	}
}

// TestPiecesCostWhatTheyAre: a string that comes in very many pieces costs time in proportion to its length.
func TestPiecesCostWhatTheyAre(t *testing.T) {
	read := func(n int) time.Duration {
		block := appendInteger([]byte{0x40, 1, 'a'}, 7, n)
		begin := time.Now()
		reader := NewReader(4096, 64<<20)
		reader.Begin()
		for block = append(block, make([]byte, n)...); len(block) > 0; block = block[min(1024, len(block)):] {
			if err := reader.Piece(block[:min(1024, len(block))]); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := reader.End(); err != nil {
			t.Fatal(err)
		}
		return time.Since(begin)
	}
	read(1 << 20)
	// 32 times the length by the square would be 1,024 times the time; a machine that is busy makes it some times longer than it ought to be.
	if one, many := read(1<<20), read(32<<20); many > 300*one && many > 5*time.Second {
		t.Errorf("1 MiB took %v, and 32 MiB %v", one, many)
	}
}

// TestShortenedKeepsTheStatus: of trailers that are too large the status stays in any case, then the message, whole characters of it, then what else fits.
func TestShortenedKeepsTheStatus(t *testing.T) {
	set := &Set{Fields: []Field{{Name: "x-debug", Value: strings.Repeat("d", 5000)}, {Name: "grpc-message", Value: strings.Repeat("%C3%A4", 2000)}, {Name: "grpc-status", Value: "3"},
		{Name: "x-small", Value: "s"}, {Name: "grpc-status-details-bin", Value: "abc"}}}
	for limit := range 9000 {
		out := Shortened(set, limit)
		if status, _ := out.Get("grpc-status"); status != "3" || out.Response().Code != 3 {
			t.Fatalf("%d bytes: the status is %q", limit, status)
		}
		if out.Size > max(limit, 100) {
			t.Fatalf("%d bytes: it has %d", limit, out.Size)
		}
		message, _ := out.Get("grpc-message")
		if len(message)%6 != 0 {
			t.Fatalf("%d bytes: the message ends with %s", limit, message[max(len(message)-8, 0):])
		}
		if details, _ := out.Get("grpc-status-details-bin"); limit > 2000 && details != "abc" {
			t.Fatalf("%d bytes: the details are %q", limit, details)
		}
	}
	for text, want := range map[string]string{"ab%25": "ab", "abc%25": "abc", "a%E2%82%AC": "a", "€€€": "€"} {
		got := cutMessage(text, 4)
		if strings.HasPrefix(want, "€") {
			got = got[:min(len(got), 3)]
		}
		if got != want || !utf8.ValidString(want) {
			t.Errorf("%s is cut to %s, want %s", text, got, want)
		}
	}
}
