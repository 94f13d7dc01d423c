package records

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/levada-io/levada/internal/flow"
)

// cutAll feeds data in pieces of the given size and cuts limit messages at a time.
func cutAll(cfg Config, data []byte, piece, limit int) (messages []flow.Message, offset uint64, err error) {
	s, err := New(cfg)
	if err != nil {
		return nil, 0, err
	}
	for {
		n := copy(s.Room(), data[:min(len(data), piece)])
		s.Fed(n)
		data = data[n:]
		for {
			cut, _, err := s.Cut(limit, 1, len(data) == 0)
			messages = append(messages, cut...)
			if err != nil {
				return messages, s.Offset(), err
			}
			if len(cut) == 0 {
				break
			}
		}
		if len(data) == 0 {
			return messages, s.Offset(), nil
		}
	}
}

func values(messages []flow.Message) []string {
	var v []string
	for _, m := range messages {
		v = append(v, string(m.Value))
	}
	return v
}

func TestFormats(t *testing.T) {
	for _, test := range []struct {
		name string
		cfg  Config
		in   string
		want []string
		pos  []uint64
	}{
		{"lines", Config{}, "a\nbc\r\n\nlast", []string{"a", "bc", "", "last"}, []uint64{1, 3, 7, 8}},
		{"json lines", Config{Format: NDJSON}, "{\"a\": 1}\n\n [2]\r\n\"x\"", []string{`{"a": 1}`, `[2]`, `"x"`}, []uint64{1, 11, 17}},
		{"columns keep their order", Config{Format: CSV}, "z,a\n1,2\n\n\"q\"\"\r\n,\",\n", []string{`{"z":"1","a":"2"}`, `{"z":"q\"\n,","a":""}`}, []uint64{5, 10}},
		{"no header", Config{Format: CSV, NoHeader: true}, "z,a\n1\n", []string{`["z","a"]`, `["1"]`}, []uint64{1, 5}},
		{"a byte order mark is not a part of the first column", Config{Format: CSV}, "\xef\xbb\xbfid\n7\n", []string{`{"id":"7"}`}, []uint64{7}},
		{"nothing", Config{Format: CSV}, "", nil, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			for piece := 1; piece <= len(test.in)+1; piece++ {
				cfg := test.cfg
				cfg.ChunkSize = 8
				got, offset, err := cutAll(cfg, []byte(test.in), piece, 2)
				if err != nil || !slices.Equal(values(got), test.want) || offset != uint64(len(test.in)) {
					t.Fatalf("in pieces of %d: %q up to %d, %v; want %q", piece, values(got), offset, err, test.want)
				}
				for i, m := range got {
					if m.Pos != test.pos[i] {
						t.Fatalf("in pieces of %d: %q is at %d, want %d", piece, m.Value, m.Pos, test.pos[i])
					}
				}
			}
		})
	}
}

func TestFaultsNameTheirPlaceAndLoseNothingBefore(t *testing.T) {
	for _, test := range []struct {
		name   string
		cfg    Config
		in     string
		before int
		line   uint64 // from 0
		reason error
		words  string
	}{
		{"no JSON", Config{Format: NDJSON}, "1\n\n{\"a\":}\n2\n", 1, 2, ErrSyntax, "invalid character"},
		{"a quote in a bare field", Config{Format: CSV}, "a,b\n1,2\n\"x\ny\",z\"\n", 1, 3, ErrSyntax, "quote"},
		{"an open quote", Config{Format: CSV}, "a\n\"x\ny", 0, 1, ErrSyntax, "not closed"},
		{"a field too many", Config{Format: CSV}, "a,b\n1,2,3\n", 0, 1, ErrSyntax, "3 fields"},
		{"a name twice", Config{Format: CSV}, "a,b,a\n", 0, 0, ErrSyntax, "columns 1 and 3"},
		{"Latin-1", Config{Format: CSV}, "a\n\xe9\n", 0, 1, ErrSyntax, "iconv"},
		{"a long line", Config{MaxRecord: 4}, "1234\n12345\n", 1, 1, ErrTooLong, "4 bytes"},
		{"a long line without an end", Config{MaxRecord: 4}, "1234\n12345", 1, 1, ErrTooLong, "4 bytes"},
		{"a long record", Config{Format: CSV, NoHeader: true, MaxRecord: 4}, "\"a\n\n\n\n\n\nb\"", 0, 0, ErrTooLong, "4 bytes"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, piece := range []int{1, 1 << 20} {
				cfg := test.cfg
				cfg.OnMalformed = Fail
				got, _, err := cutAll(cfg, []byte(test.in), piece, 100)
				bad, ok := errors.AsType[*Error](err)
				if !ok || !errors.Is(err, test.reason) || bad.Line != test.line || !strings.Contains(err.Error(), test.words) || len(got) != test.before {
					t.Fatalf("in pieces of %d: %d messages, then %#v: %v", piece, len(got), bad, err)
				}
			}
		})
	}
}

func TestUnknownFormat(t *testing.T) {
	if _, err := New(Config{Format: "xml"}); err == nil || !strings.Contains(err.Error(), "lines, ndjson or csv") {
		t.Fatal(err)
	}
}

func TestMessagesKeepTheirBytes(t *testing.T) {
	s, _ := New(Config{ChunkSize: 64})
	var all []flow.Message
	for i := range 200 {
		line := strings.Repeat(string(rune('a'+i%26)), i%40) + "\n"
		for fed := 0; fed < len(line); {
			n := copy(s.Room(), line[fed:])
			s.Fed(n)
			fed += n
		}
		cut, _, err := s.Cut(1<<20, 0, false)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, cut...)
	}
	if len(all) != 200 {
		t.Fatalf("%d lines", len(all))
	}
	for i, m := range all {
		if string(m.Value) != strings.Repeat(string(rune('a'+i%26)), i%40) {
			t.Fatalf("line %d became %q", i, m.Value)
		}
	}
}

// maxFuzz bounds inputs: a record that comes byte by byte is looked at again for each byte.
const maxFuzz = 2 << 10

func FuzzLinesLikeBufio(f *testing.F) {
	f.Add([]byte("a\r\n\n\rb\n"), uint8(3))
	f.Add([]byte("\r"), uint8(1))
	f.Fuzz(func(t *testing.T, data []byte, piece uint8) {
		if len(data) > maxFuzz {
			t.Skip()
		}
		var want []string
		var pos []uint64
		at := uint64(0)
		scan := bufio.NewScanner(bytes.NewReader(data))
		scan.Split(func(data []byte, eof bool) (int, []byte, error) {
			n, token, err := bufio.ScanLines(data, eof)
			if token != nil {
				pos = append(pos, at+1)
			}
			at += uint64(n)
			return n, token, err
		})
		for scan.Scan() {
			want = append(want, scan.Text())
		}
		got, offset, err := cutAll(Config{ChunkSize: 16}, data, int(piece)+1, 3)
		if err != nil || offset != uint64(len(data)) {
			t.Fatalf("offset %d of %d, %v", offset, len(data), err)
		}
		if !slices.Equal(values(got), want) {
			t.Fatalf("%q\ngot  %q\nwant %q", data, values(got), want)
		}
		for i, m := range got {
			if m.Pos != pos[i] {
				t.Fatalf("line %d is at %d, want %d", i, m.Pos, pos[i])
			}
		}
	})
}

func FuzzCSVLikeEncodingCSV(f *testing.F) {
	for _, s := range []string{"a,b\n1,2", "\"x\r\ny\"\r\n,\n", "\"a\"\"\"\r", "a\rb\r\n\r\n\r", "\"a\r\r\n\",\r\r\n", "x\"\n", "\"", "\"a\"b", ",\"\""} {
		f.Add([]byte(s), uint8(2))
	}
	f.Fuzz(func(t *testing.T, data []byte, piece uint8) {
		if len(data) > maxFuzz || !utf8.Valid(data) || bytes.HasPrefix(data, bom) {
			t.Skip()
		}
		r := csv.NewReader(bytes.NewReader(data))
		r.FieldsPerRecord = -1
		var want [][]string
		pos := []uint64{1}
		var wantErr error
		for {
			record, err := r.Read()
			if err == io.EOF {
				break
			}
			if err != nil {
				wantErr = err
				break
			}
			want = append(want, record)
			pos = append(pos, uint64(r.InputOffset())+1)
		}
		got, offset, err := cutAll(Config{Format: CSV, NoHeader: true, OnMalformed: Fail, ChunkSize: 16}, data, int(piece)+1, 3)
		if (err != nil) != (wantErr != nil) {
			t.Fatalf("%q: %v; encoding/csv says %v", data, err, wantErr)
		}
		if len(got) != len(want) {
			t.Fatalf("%q: %d records, encoding/csv has %d", data, len(got), len(want))
		}
		if err == nil && offset != uint64(len(data)) {
			t.Fatalf("%q: offset %d of %d", data, offset, len(data))
		}
		for i, m := range got {
			var fields []string
			if err := json.Unmarshal(m.Value, &fields); err != nil {
				t.Fatalf("%q: %v", m.Value, err)
			}
			if !slices.Equal(fields, want[i]) {
				t.Fatalf("%q: record %d is %q, encoding/csv has %q", data, i, fields, want[i])
			}
			// encoding/csv's offset is after a record; blank lines between belong to neither.
			if m.Pos < pos[i] || len(bytes.Trim(data[pos[i]-1:m.Pos-1], "\r\n")) > 0 {
				t.Fatalf("%q: record %d is at %d, encoding/csv has it at or after %d", data, i, m.Pos, pos[i])
			}
		}
	})
}
