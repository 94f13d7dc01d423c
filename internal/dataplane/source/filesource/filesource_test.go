package filesource_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/dataplane/source/filesource"
	"github.com/levada-io/levada/internal/dataplane/source/records"
	"github.com/levada-io/levada/internal/dataplane/source/sourcetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	for _, follow := range []bool{false, true} {
		t.Run(fmt.Sprintf("follow=%v", follow), func(t *testing.T) {
			sourcetest.Run(t, func(t *testing.T) sourcetest.Harness {
				path := filepath.Join(t.TempDir(), "in.txt")
				put(t, path, "")
				positions := &sourcetest.Positions{}
				return sourcetest.Harness{
					Finite: !follow,
					Open: func(t *testing.T) source.Reader {
						return open(t, filesource.Config{Path: path, Follow: follow, Poll: time.Millisecond, Positions: positions})
					},
					Produce: func(t *testing.T, from, to int) {
						for i := from; i < to; i++ {
							add(t, path, sourcetest.Payload(i)+"\n")
						}
					},
				}
			})
		})
	}
}

func open(t *testing.T, cfg filesource.Config) *filesource.Reader {
	t.Helper()
	if cfg.Positions == nil {
		cfg.Positions = &sourcetest.Positions{}
	}
	r, err := filesource.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close(context.Background()) })
	return r
}

func put(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func add(t *testing.T, path, content string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(content); err != nil {
		t.Fatal(err)
	}
}

// read reads n messages, acknowledges them and returns their payloads.
func read(t *testing.T, r source.Reader, n int) (got []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for len(got) < n {
		b, err := r.Read(ctx, n-len(got))
		if err != nil {
			t.Fatalf("after %q: %v", got, err)
		}
		for _, m := range b.Messages {
			got = append(got, string(m.Value))
		}
		if err := r.Ack(ctx, b); err != nil {
			t.Fatal(err)
		}
	}
	return got
}

func want(t *testing.T, got []string, want ...string) {
	t.Helper()
	if strings.Join(got, "|") != strings.Join(want, "|") {
		t.Fatalf("got %q, want %q", got, want)
	}
}

func refuses(t *testing.T, err, kind error, words ...string) {
	t.Helper()
	if err == nil || kind != nil && !errors.Is(err, kind) {
		t.Fatalf("error is %v, want %v", err, kind)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Fatalf("error %q does not say %q", err, w)
		}
	}
}

func TestLastLineWithoutEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	put(t, path, "one\ntwo")
	finite := open(t, filesource.Config{Path: path})
	want(t, read(t, finite, 2), "one", "two")
	if _, err := finite.Read(t.Context(), 1); err != io.EOF {
		t.Fatal(err)
	}

	following := open(t, filesource.Config{Path: path, Follow: true, Poll: time.Millisecond})
	want(t, read(t, following, 1), "one")
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if b, err := following.Read(short, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("an unfinished line was given: %v, %v", b, err)
	}
	add(t, path, "-and-a-half\n")
	want(t, read(t, following, 1), "two-and-a-half")
}

func TestPositionIsSavedSeldomAndAtTheEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	put(t, path, strings.Repeat("x\n", 1000))
	positions := &sourcetest.Positions{}
	r := open(t, filesource.Config{Path: path, Positions: positions, SaveEvery: time.Hour})
	for range 1000 {
		read(t, r, 1)
	}
	if n := positions.Saves(); n != 3 {
		t.Fatalf("%d saves, want only those of the identity and the first", n)
	}
	if err := r.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := positions.Saves(); n < 4 || n > 5 {
		t.Fatalf("%d saves, want few more when it closes", n)
	}
	r = open(t, filesource.Config{Path: path, Positions: positions})
	if b, err := r.Read(t.Context(), 1); err != io.EOF {
		t.Fatalf("after all was acknowledged: %v, %v", b, err)
	}
}

func TestIdleFollowerSavesTheLastPosition(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	put(t, path, "1\n2\n")
	positions := &sourcetest.Positions{}
	r := open(t, filesource.Config{Path: path, Positions: positions, Follow: true, Poll: time.Millisecond, SaveEvery: 30 * time.Millisecond})
	read(t, r, 1)
	read(t, r, 1) // too early to be saved
	short, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	go func() {
		for positions.Saves() < 4 && short.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	if _, err := r.Read(short, 1); !errors.Is(err, context.Canceled) {
		t.Fatalf("the position was not saved while nothing came: %v", err)
	}
}

func TestAFailedSaveIsAnErrorAndIsMadeGoodLater(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	put(t, path, "1\n2\n")
	positions := &sourcetest.Positions{}
	r := open(t, filesource.Config{Path: path, Positions: positions})
	b, err := r.Read(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	down := errors.New("store is down")
	positions.Fail(down)
	refuses(t, r.Ack(t.Context(), b), down)
	positions.Fail(nil)
	if err := r.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, read(t, open(t, filesource.Config{Path: path, Positions: positions}), 1), "2")
}

// TestAFileThatIsWrittenAnewIsReadFromItsStart: each file has a partition of its own, so that readers do not take its messages for those of the one before.
func TestAFileThatIsWrittenAnewIsReadFromItsStart(t *testing.T) {
	const before = "header\nfirst\nsecond\nthird\n"
	for name, test := range map[string]struct {
		after, want, partition string
	}{
		"grown":                       {before + "fourth\n", "third fourth", "a.log"},
		"shorter":                     {"header\n", "header", "a.log~1"},
		"another":                     {"other\n" + before, "other header first second third", "a.log~1"},
		"another with the same start": {"header\nfresh\nsecond\nthird\n", "header fresh second third", "a.log~1"},
		"changed after what was read": {"header\nfirst\nsecond\nTHIRD\n", "THIRD", "a.log"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "a.log")
			put(t, path, before)
			positions := &sourcetest.Positions{}
			r := open(t, filesource.Config{Path: path, Positions: positions})
			want(t, read(t, r, 3), "header", "first", "second")
			if err := r.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			put(t, path, test.after)
			for range 2 { // also after a start that read nothing
				r = open(t, filesource.Config{Path: path, Positions: positions})
				b, err := r.Read(t.Context(), 1)
				if err != nil || b.Partition != test.partition {
					t.Fatalf("%+v, %v", b, err)
				}
				if err := r.Close(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			r = open(t, filesource.Config{Path: path, Positions: positions})
			words := strings.Fields(test.want)
			want(t, read(t, r, len(words)), words...)
			if b, err := r.Read(t.Context(), 1); err != io.EOF {
				t.Fatalf("%v, %v", b, err)
			}
		})
	}
}

func TestAFollowedFileThatIsTruncatedIsReadFromItsStart(t *testing.T) {
	for name, after := range map[string]string{"shorter": "new\n", "longer": strings.Repeat("new\n", 100)} {
		for _, copied := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, copied %v", name, copied), func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "a.log")
				put(t, path, "one\ntwo\n")
				r := open(t, filesource.Config{Path: path, Follow: true, Poll: time.Millisecond, SaveEvery: time.Nanosecond})
				want(t, read(t, r, 2), "one", "two")
				short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
				defer cancel()
				_, _ = r.Read(short, 1) // it is at the end now
				if copied {
					put(t, path+".1", "one\ntwo\nthree\npart")
				}
				put(t, path, after)
				if copied {
					want(t, read(t, r, 2), "three", "part")
				}
				want(t, read(t, r, 1), "new")
			})
		}
	}
}

func TestARotatedFileIsReadToItsEndAndThenTheNewOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.log")
	put(t, path, "one\n")
	positions := &sourcetest.Positions{}
	cfg := filesource.Config{Path: path, Follow: true, Poll: time.Millisecond, Positions: positions}
	r := open(t, cfg)
	want(t, read(t, r, 1), "one")
	for i := range 3 {
		if err := os.Rename(path, fmt.Sprintf("%s.%d", path, i)); err != nil {
			t.Fatal(err)
		}
		add(t, fmt.Sprintf("%s.%d", path, i), "two\nthree") // the writer has not noticed yet
		want(t, read(t, r, 1), "two")
		put(t, path, "four\n")
		want(t, read(t, r, 2), "three", "four")
	}
	if err := r.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, read(t, r2(t, cfg, path), 3), "five", "six", "seven")
}

// r2 rotates the file while nobody reads it, and opens it again.
func r2(t *testing.T, cfg filesource.Config, path string) *filesource.Reader {
	t.Helper()
	add(t, path, "five\n")
	if err := os.Rename(path, path+"-20260102"); err != nil {
		t.Fatal(err)
	}
	add(t, path+"-20260102", "six")
	put(t, path, "seven\n")
	return open(t, cfg)
}

// TestCrash goes on from what was saved at each moment, and finds every message under the position that it had before.
func TestCrash(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.csv")
	var content strings.Builder
	content.WriteString("n,text\r\n")
	for i := range 500 {
		fmt.Fprintf(&content, "%d,\"%s\"\r\n", i, strings.Repeat("\r\n", i%4))
	}
	put(t, path, content.String())
	positions := &sourcetest.Positions{}
	cfg := filesource.Config{Path: path, Format: records.CSV, Positions: positions, SaveEvery: time.Nanosecond}
	r := open(t, cfg)
	was := map[uint64]string{}
	var order []uint64
	type moment struct {
		saved *sourcetest.Positions
		done  int
	}
	var moments []moment
	for {
		b, err := r.Read(t.Context(), 7)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range b.Messages {
			was[m.Pos] = string(m.Value)
			order = append(order, m.Pos)
		}
		if len(moments)%3 != 2 { // not all of it is acknowledged at each moment
			if err := r.Ack(t.Context(), b); err != nil {
				t.Fatal(err)
			}
		}
		done := len(order)
		if len(moments)%3 == 2 {
			done -= len(b.Messages)
		}
		moments = append(moments, moment{positions.Snapshot(), done})
	}
	if len(order) != 500 {
		t.Fatalf("%d records", len(order))
	}
	for _, m := range moments {
		cfg.Positions = m.saved
		r := open(t, cfg)
		for _, pos := range order[m.done:] {
			b, err := r.Read(t.Context(), 1)
			if err != nil {
				t.Fatal(err)
			}
			if got := b.Messages[0]; got.Pos != pos || string(got.Value) != was[pos] {
				t.Fatalf("position %d has %s, want %d with %s", got.Pos, got.Value, pos, was[pos])
			}
		}
		if err := r.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCSVGoesOnAfterItsHeader(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.csv")
	put(t, path, "id,text\n1,\"two\nlines\"\n2,x\n3,y\n")
	positions := &sourcetest.Positions{}
	cfg := filesource.Config{Path: path, Format: records.CSV, Positions: positions}
	r := open(t, cfg)
	want(t, read(t, r, 1), `{"id":"1","text":"two\nlines"}`)
	if err := r.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	r = open(t, cfg)
	want(t, read(t, r, 2), `{"id":"2","text":"x"}`, `{"id":"3","text":"y"}`)
}

func TestErrorsNameFileAndLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.json")
	put(t, path, "1\n2\n{oops\n4\n")
	positions := &sourcetest.Positions{}
	r := open(t, filesource.Config{Path: path, Format: records.NDJSON, OnMalformed: records.Fail, Positions: positions})
	want(t, read(t, r, 2), "1", "2")
	for range 2 {
		_, err := r.Read(t.Context(), 1)
		refuses(t, err, records.ErrSyntax, path+":3: ")
	}
	if err := r.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	put(t, path, "1\n2\n3\n4\n") // corrected as the error says
	want(t, read(t, open(t, filesource.Config{Path: path, Format: records.NDJSON, Positions: positions}), 2), "3", "4")
}

func TestConfigErrors(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	keep, err := os.OpenFile(pipe, os.O_RDWR, 0) // so that opening it does not wait
	if err != nil {
		t.Fatal(err)
	}
	defer keep.Close()
	p := &sourcetest.Positions{}
	for words, cfg := range map[string]filesource.Config{
		"path: required":      {Positions: p},
		"positions: required": {Path: dir},
		"directory":           {Path: dir, Positions: p},
		"use the stdin":       {Path: pipe, Positions: p},
		"no such file":        {Path: filepath.Join(dir, "none"), Positions: p},
		"lines, ndjson":       {Path: dir, Positions: p, Format: "xml"},
	} {
		_, err := filesource.New(t.Context(), cfg)
		refuses(t, err, nil, words)
	}
	if err := p.Save(t.Context(), "none", []byte("{")); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, "none"), "x")
	_, err = filesource.New(t.Context(), filesource.Config{Path: filepath.Join(dir, "none"), Positions: p})
	refuses(t, err, nil, "saved position")
}

func BenchmarkRead(b *testing.B) {
	for _, format := range []records.Format{records.Lines, records.NDJSON, records.CSV} {
		b.Run(string(format), func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "in")
			line := `{"id":12345,"text":"` + strings.Repeat("x", 233) + "\"}\n"
			if format == records.CSV {
				line = "12345," + strings.Repeat("x", 249) + "\n"
			}
			const lines = 400_000
			if err := os.WriteFile(path, []byte(strings.Repeat(line, lines)), 0o644); err != nil {
				b.Fatal(err)
			}
			heap := make([]byte, 64<<20) // as a vertex has: with an empty heap we would measure the collector, which runs all the time then
			defer runtime.KeepAlive(heap)
			var before, after syscall.Rusage
			_ = syscall.Getrusage(syscall.RUSAGE_SELF, &before)
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				r, err := filesource.New(b.Context(), filesource.Config{Path: path, Format: format, NoHeader: true, Positions: &sourcetest.Positions{}})
				if err != nil {
					b.Fatal(err)
				}
				for {
					batch, err := r.Read(b.Context(), 500)
					if err == io.EOF {
						break
					}
					if err != nil {
						b.Fatal(err)
					}
					n += len(batch.Messages)
					if err := r.Ack(b.Context(), batch); err != nil {
						b.Fatal(err)
					}
				}
				_ = r.Close(b.Context())
			}
			_ = syscall.Getrusage(syscall.RUSAGE_SELF, &after)
			cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
			b.ReportMetric(float64(cpu)/float64(n), "cpu-ns/message")
			b.ReportMetric(0, "ns/op")
		})
	}
}
