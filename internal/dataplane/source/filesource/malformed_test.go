package filesource_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/dataplane/source/filesource"
	"github.com/levada-io/levada/internal/dataplane/source/records"
	"github.com/levada-io/levada/internal/dataplane/source/sourcetest"
)

// TestMalformedRecordsAreDeadLetteredAndTheRestGoesOn: the evidence names file and line, also after a restart, and positions are those of the file.
func TestMalformedRecordsAreDeadLetteredAndTheRestGoesOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "orders.ndjson")
	var content strings.Builder
	for i := range 100 {
		if i%10 == 7 {
			fmt.Fprintf(&content, "{broken %d\n", i)
		} else {
			fmt.Fprintf(&content, "%d\n", i)
		}
	}
	put(t, path, content.String())
	positions := &sourcetest.Positions{}
	cfg := filesource.Config{Path: path, Format: records.NDJSON, Positions: positions, SaveEvery: time.Nanosecond}
	r := open(t, cfg)
	good, bad := 0, 0
	for turn := 0; ; turn++ {
		b, err := r.Read(t.Context(), 9)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for i, m := range b.Messages {
			line := bytes.Count([]byte(content.String())[:m.Pos-1], []byte{'\n'})
			failure := b.Broken[i]
			if line%10 != 7 {
				good++
				if failure != nil || string(m.Value) != fmt.Sprint(line) {
					t.Fatalf("line %d is %q, %+v", line+1, m.Value, failure)
				}
				continue
			}
			bad++
			if failure == nil || failure.Reason != deadletter.Malformed || !strings.HasPrefix(failure.Error, fmt.Sprintf("%s:%d: ", path, line+1)) || string(m.Value) != fmt.Sprintf("{broken %d", line) {
				t.Fatalf("line %d is %q, %+v", line+1, m.Value, failure)
			}
		}
		if err := r.Ack(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		if turn%3 == 2 {
			if err := r.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			r = open(t, cfg)
		}
	}
	if good != 90 || bad != 10 {
		t.Fatalf("%d and %d of 90 and 10", good, bad)
	}
}

func TestSkippedRecordsAreCountedAndLogged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.csv")
	put(t, path, "id,name\n1,a\n2\n3,c\n4,d,e\n5\n")
	var log bytes.Buffer
	n, size := 0, 0
	positions := &sourcetest.Positions{}
	cfg := filesource.Config{
		Path: path, Format: records.CSV, OnMalformed: records.Skip, Logger: slog.New(slog.NewTextHandler(&log, nil)), Positions: positions,
		Skipped: func(records, bytes int) { n += records; size += bytes },
	}
	r := open(t, cfg)
	want(t, read(t, r, 2), `{"id":"1","name":"a"}`, `{"id":"3","name":"c"}`)
	if _, err := r.Read(t.Context(), 10); err != io.EOF {
		t.Fatal(err)
	}
	if n != 3 || size != len("2\n4,d,e\n5\n") {
		t.Fatalf("%d records with %d bytes were counted", n, size)
	}
	if text := log.String(); !strings.Contains(text, "a.csv:3") || !strings.Contains(text, "records=2") || strings.Count(text, "\n") != 2 {
		t.Fatalf("log: %s", text)
	}
}

func TestFailEndsWithOneErrorThatDoesNotPass(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.ndjson")
	put(t, path, "1\n{\n2\n")
	r := open(t, filesource.Config{Path: path, Format: records.NDJSON, OnMalformed: records.Fail})
	want(t, read(t, r, 1), "1")
	_, err := r.Read(t.Context(), 1)
	if p, ok := errors.AsType[*source.PermanentError](err); !ok || !strings.HasPrefix(p.Error(), path+":2: ") {
		t.Fatal(err)
	}
}

func TestAMalformedHeaderEndsThePipeline(t *testing.T) {
	for content, words := range map[string]string{"a,a\n1,2\n": "both called", "\"id\";\"x\"\n": "set delimiter", "a,\"b\n1,2\n": "not closed"} {
		path := filepath.Join(t.TempDir(), "a.csv")
		put(t, path, content)
		_, err := open(t, filesource.Config{Path: path, Format: records.CSV}).Read(t.Context(), 1)
		if _, ok := errors.AsType[*source.PermanentError](err); !ok || !strings.Contains(err.Error(), words) || !strings.Contains(err.Error(), path+":1") {
			t.Errorf("%q: %v", content, err)
		}
	}
}

func TestAnotherDelimiterIsWarnedOfOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.csv")
	put(t, path, "id;name\n1;a\n2;b\n")
	var log bytes.Buffer
	r := open(t, filesource.Config{Path: path, Format: records.CSV, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	read(t, r, 2)
	if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, path) || !strings.Contains(text, "delimiter: ") {
		t.Fatalf("log: %s", text)
	}
}
