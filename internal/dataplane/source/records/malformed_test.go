package records

import (
	"fmt"
	"strings"
	"testing"
)

// TestMalformedRecordsCostOnlyThemselves holds for each format that what cannot be read is given as raw bytes with its place, whatever the size of
// the pieces in which the input comes, and that the records before and after it are read as if it had not been there.
func TestMalformedRecordsCostOnlyThemselves(t *testing.T) {
	for _, test := range []struct {
		name string
		cfg  Config
		in   string
		want string // messages; those in brackets are malformed, with line and size
	}{
		{"no JSON", Config{Format: NDJSON}, "1\n{oops\n\n{\"a\":}\r\n2\n", "1 [1 6 {oops] [3 8 {\"a\":}] 2"},
		{"JSON that is cut off at the end", Config{Format: NDJSON}, "1\n{\"a\": ", "1 [1 6 {\"a\": ]"},
		{"JSON that is not UTF-8", Config{Format: NDJSON}, "1\n\"\xe9\"\n2", "1 [1 4 \"\xe9\"] 2"},
		{"a line that is too long", Config{MaxRecord: 4}, "1234\n12345678901234567\nabcd\r\n", "1234 [1 18 12345678901234567] abcd"},
		{"a last line that is too long", Config{MaxRecord: 4}, "1\n1234567890", "1 [1 10 1234567890]"},
		{"JSON that is too long", Config{Format: NDJSON, MaxRecord: 4}, "1\n\"1234567890\"\n2\n", "1 [1 13 \"1234567890\"] 2"},
		{"fields too many and too few", Config{Format: CSV}, "a,b\n1,2\n1\n1,2,3\n3,4\n", `{"a":"1","b":"2"} [2 2 1] [3 6 1,2,3] {"a":"3","b":"4"}`},
		{"a quote in a bare field", Config{Format: CSV}, "a,b\n1,x\"y\n3,4\n", `[1 6 1,x"y] {"a":"3","b":"4"}`},
		{"text after a closing quote", Config{Format: CSV}, "a,b\n1,\"x\"y\n3,4\n", `[1 7 1,"x"y] {"a":"3","b":"4"}`},
		{"a quote open to the end", Config{Format: CSV}, "a,b\n1,2\n\"x,3\n4,5\n6,7\n", `{"a":"1","b":"2"} [2 5 "x,3] {"a":"4","b":"5"} {"a":"6","b":"7"}`},
		{"a quote open to the next quoted field", Config{Format: CSV}, "a,b\n\"x,3\n4,5\n\"6\",7\n8,9\n", `[1 5 "x,3] {"a":"4","b":"5"} {"a":"6","b":"7"} {"a":"8","b":"9"}`},
		{"a quote open in a long file", Config{Format: CSV, MaxRecord: 8}, "a,b\n\"x,3\n4,5\n6,7\n8,9\n", `[1 5 "x,3] {"a":"4","b":"5"} {"a":"6","b":"7"} {"a":"8","b":"9"}`},
		{"Latin-1", Config{Format: CSV}, "a\nx\n\xe9\ny\n", "{\"a\":\"x\"} [2 2 \xe9] {\"a\":\"y\"}"},
		{"semicolons", Config{Format: CSV, Delimiter: ';'}, "a;b\n1,5;2\n\"x;y\";\"\"\n", `{"a":"1,5","b":"2"} {"a":"x;y","b":""}`},
		{"tabs", Config{Format: CSV, Delimiter: '\t', NoHeader: true}, "a\tb\r\n1\t\n", `["a","b"] ["1",""]`},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, policy := range []Policy{DeadLetter, Skip} {
				for piece := 1; piece <= len(test.in)+1; piece++ {
					cfg := test.cfg
					cfg.ChunkSize, cfg.OnMalformed = 8, policy
					got := describe(t, cfg, test.in, piece)
					if want := test.want; policy == DeadLetter && got != want {
						t.Fatalf("in pieces of %d: got  %s\nwant %s", piece, got, want)
					} else if policy == Skip && got != withoutMalformed(want) {
						t.Fatalf("skipping, in pieces of %d: got  %s\nwant %s", piece, got, withoutMalformed(want))
					}
				}
			}
		})
	}
}

// describe cuts all of in and checks that each call covers all bytes up to its offset.
func describe(t *testing.T, cfg Config, in string, piece int) string {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	rest := in
	last := uint64(0)
	for {
		n := copy(s.Room(), rest[:min(len(rest), piece)])
		s.Fed(n)
		rest = rest[n:]
		for {
			messages, bad, err := s.Cut(2, 1, len(rest) == 0)
			if err != nil {
				t.Fatal(err)
			}
			faults := map[int]*Error{}
			for _, e := range bad {
				if (e.Index < 0) != (cfg.OnMalformed == Skip) {
					t.Fatalf("index %d", e.Index)
				}
				faults[e.Index] = e
			}
			for i, m := range messages {
				if m.Pos <= last || m.Pos > s.Offset() {
					t.Fatalf("%q is at %d, after %d and with the next record at %d", m.Value, m.Pos, last, s.Offset())
				}
				last = m.Pos
				if e := faults[i]; e != nil {
					if e.Offset+1 != m.Pos {
						t.Fatalf("the fault is at %d, the message at %d", e.Offset, m.Pos)
					}
					out = append(out, fmt.Sprintf("[%d %d %s]", e.Line, e.Size, m.Value))
				} else {
					out = append(out, string(m.Value))
				}
			}
			if len(messages) == 0 && len(bad) == 0 {
				break
			}
		}
		if len(rest) == 0 {
			if s.Offset() != uint64(len(in)) {
				t.Fatalf("ended at %d of %d", s.Offset(), len(in))
			}
			return strings.Join(out, " ")
		}
	}
}

func withoutMalformed(want string) string {
	var out []string
	for want != "" {
		if strings.HasPrefix(want, "[") && want[1] >= '0' && want[1] <= '9' && strings.Contains(want, "]") {
			_, want, _ = strings.Cut(want, "]")
			want = strings.TrimPrefix(want, " ")
			continue
		}
		word, rest, _ := strings.Cut(want, " ")
		out, want = append(out, word), rest
	}
	return strings.Join(out, " ")
}

func TestALongRecordIsDroppedInBoundedMemory(t *testing.T) {
	s, err := New(Config{MaxRecord: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	for range 64 << 20 / (256 << 10) {
		room := s.Room()
		if len(room) > 4<<20 {
			t.Fatalf("%d bytes are asked for at once", len(room))
		}
		s.Fed(len(room))
		if messages, bad, err := s.Cut(10, 1, false); len(messages)+len(bad) > 0 || err != nil {
			t.Fatalf("%d messages, %v", len(messages), err)
		}
	}
	s.Fed(copy(s.Room(), "\nnext\n"))
	messages, bad, err := s.Cut(10, 1, false)
	if err != nil || len(bad) != 1 || bad[0].Size <= 32<<20 || len(messages[0].Value) != MaxRaw {
		t.Fatalf("%v, %v", bad, err)
	}
	if len(messages) == 1 {
		messages, _, _ = s.Cut(10, 1, false)
	}
	if got := values(messages); got[len(got)-1] != "next" {
		t.Fatalf("%q follow", got)
	}
}

func TestAnotherDelimiterIsNoticed(t *testing.T) {
	for in, want := range map[string]byte{"a;b\n1;2\n": ';', "a\tb\n": '\t', "a,b\n": 0, "a\n": 0, "\"a;b\"\n": 0} {
		s, _ := New(Config{Format: CSV})
		s.Fed(copy(s.Room(), in))
		if _, _, err := s.Cut(10, 1, true); err != nil || s.Suspect() != want {
			t.Errorf("%q: suspects %q, %v; want %q", in, s.Suspect(), err, want)
		}
	}
	s, _ := New(Config{Format: CSV})
	s.Fed(copy(s.Room(), "\"id\";\"name\"\n1;2\n"))
	if _, _, err := s.Cut(10, 1, true); err == nil || !strings.Contains(err.Error(), "set delimiter") {
		t.Errorf("a quoted header: %v", err)
	}
}

func TestUTF16IsRefusedAsAWhole(t *testing.T) {
	for _, in := range []string{"\xff\xfe1\x00\n\x00", "\xfe\xff\x001"} {
		s, _ := New(Config{Format: NDJSON})
		s.Fed(copy(s.Room(), in))
		if _, _, err := s.Cut(10, 1, true); err == nil || !strings.Contains(err.Error(), "UTF-16") {
			t.Error(err)
		}
	}
}

func TestDelimiters(t *testing.T) {
	for text, want := range map[string]byte{"": ',', ";": ';', `\t`: '\t', "\t": '\t', "|": '|'} {
		if got, err := ParseDelimiter(text); got != want || err != nil {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	for _, text := range []string{"::", "ü", "\n", `"`} {
		if _, err := ParseDelimiter(text); err == nil || !strings.Contains(err.Error(), "delimiter") {
			t.Errorf("%q: %v", text, err)
		}
	}
}
