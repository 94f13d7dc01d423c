package filesource_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/dataplane/source/filesource"
	"github.com/levada-io/levada/internal/dataplane/source/records"
	"github.com/levada-io/levada/internal/dataplane/source/sourcetest"
)

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// give reads one batch and does not acknowledge it.
func give(t *testing.T, r source.Reader) *source.Batch {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	b, err := r.Read(ctx, 100)
	must(t, err)
	return b
}

// A message in flight of an earlier file has positions that those of a new one may not have: readers would take them for repetitions.
func TestAFileReplacedBeforeItsFirstAcknowledgementIsAnotherOne(t *testing.T) {
	for name, replace := range map[string]func(t *testing.T, path string){
		"rewritten": func(t *testing.T, path string) { put(t, path, "new1\nnew2\n") },
		"replaced": func(t *testing.T, path string) {
			put(t, path+".tmp", "new1\nnew2\n")
			must(t, os.Rename(path+".tmp", path))
		},
		"deleted": func(t *testing.T, path string) { must(t, os.Remove(path)); put(t, path, "new1\nnew2\n") },
		"begins the same": func(t *testing.T, path string) {
			put(t, path+".tmp", "old1\nnew2\n")
			must(t, os.Rename(path+".tmp", path))
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "a.log")
			put(t, path, "")
			positions := &sourcetest.Positions{}
			cfg := filesource.Config{Path: path, Follow: true, Poll: time.Millisecond, Positions: positions}
			r := open(t, cfg)
			add(t, path, "old1\n")
			old := give(t, r)
			add(t, path, "old2\n") // the file grows beyond what identified it
			give(t, r)
			cfg.Positions = positions.Snapshot()
			replace(t, path)
			for range 2 { // also after a crash right behind that
				b := give(t, open(t, cfg))
				if b.Partition == old.Partition || len(b.Messages) != 2 || string(b.Messages[1].Value) != "new2" {
					t.Fatalf("%s after %s: %v", b.Partition, old.Partition, b.Messages)
				}
			}
		})
	}
}

func TestAGrownFileIsTheSameBeforeItsFirstAcknowledgement(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.log")
	put(t, path, "one\n")
	positions := &sourcetest.Positions{}
	cfg := filesource.Config{Path: path, Positions: positions}
	old := give(t, open(t, cfg))
	cfg.Positions = positions.Snapshot()
	add(t, path, "two\n")
	if b := give(t, open(t, cfg)); b.Partition != old.Partition || len(b.Messages) != 2 {
		t.Fatalf("%+v", b)
	}
}

func TestNothingIsGivenBeforeTheIdentityIsSaved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.log")
	put(t, path, "one\n")
	positions := &sourcetest.Positions{}
	r := open(t, filesource.Config{Path: path, Positions: positions})
	down := errors.New("store is down")
	positions.Fail(down)
	_, err := r.Read(t.Context(), 1)
	refuses(t, err, down, path)
	positions.Fail(nil)
	want(t, read(t, r, 1), "one")
}

// A nightly file often begins like the one before.
func TestAReplacedFileWithAnEqualStartIsReadInFull(t *testing.T) {
	start := strings.Repeat("the same line\n", 400)
	for _, unread := range []bool{false, true} {
		t.Run(fmt.Sprintf("renamed %v", unread), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "a.log")
			put(t, path, start+"old\n")
			cfg := filesource.Config{Path: path, Positions: &sourcetest.Positions{}}
			r := open(t, cfg)
			read(t, r, 200)
			must(t, r.Close(t.Context()))
			put(t, path+".tmp", start+"new\n")
			var words []string
			if unread {
				must(t, os.Rename(path, path+".1"))
				words = append(strings.Split(strings.TrimSpace(start), "\n")[200:], "old")
			}
			must(t, os.Rename(path+".tmp", path))
			words = append(words, strings.Split(start+"new", "\n")...)
			r = open(t, cfg)
			want(t, read(t, r, len(words)), words...)
			if _, err := r.Read(t.Context(), 1); err != io.EOF {
				t.Fatal(err)
			}
		})
	}
}

// A restored backup and cp -a give a file another inode, and it is still the same one.
func TestACopyInAnotherPlaceGoesOn(t *testing.T) {
	from, to := filepath.Join(t.TempDir(), "a.log"), filepath.Join(t.TempDir(), "a.log")
	put(t, from, "one\ntwo\n")
	must(t, os.Chtimes(from, time.Now().Add(-time.Hour), time.Now().Add(-time.Hour)))
	positions := &sourcetest.Positions{}
	r := open(t, filesource.Config{Path: from, Positions: positions})
	want(t, read(t, r, 1), "one")
	must(t, r.Close(t.Context()))
	put(t, to, "one\ntwo\nthree\n")
	want(t, read(t, open(t, filesource.Config{Path: to, Positions: positions.Snapshot()}), 2), "two", "three")

	info, err := os.Stat(from) // restored where it was, with its time
	must(t, err)
	put(t, from+".restored", "one\ntwo\n")
	must(t, os.Chtimes(from+".restored", info.ModTime(), info.ModTime()), os.Rename(from+".restored", from))
	want(t, read(t, open(t, filesource.Config{Path: from, Positions: positions}), 1), "two")
}

func TestACorrectedFileGoesOnAlsoAsAnotherInode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.json")
	put(t, path, "1\n2\n{oops\n4\n")
	cfg := filesource.Config{Path: path, Format: records.NDJSON, OnMalformed: records.Fail, Positions: &sourcetest.Positions{}}
	r := open(t, cfg)
	want(t, read(t, r, 2), "1", "2")
	_, err := r.Read(t.Context(), 1)
	refuses(t, err, records.ErrSyntax)
	must(t, r.Close(t.Context()))
	put(t, path+".tmp", "1\n2\n3\n4\n") // as sed -i does
	must(t, os.Rename(path+".tmp", path))
	want(t, read(t, open(t, cfg), 2), "3", "4")
}

func TestAMissingFileIsAwaitedIfItIsFollowed(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(dir, "a.log")
		var logs bytes.Buffer
		r, err := filesource.New(t.Context(), filesource.Config{Path: path, Follow: true, Positions: &sourcetest.Positions{}, Logger: slog.New(slog.NewTextHandler(&logs, nil))})
		must(t, err)
		if n, err := r.Pending(t.Context()); n != 0 || err != nil {
			t.Fatal(n, err)
		}
		for range 2 {
			short, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			if _, err := r.Read(short, 1); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
			cancel()
		}
		if strings.Count(logs.String(), "waiting for it") != 1 {
			t.Fatal(logs.String())
		}
		put(t, path, "one\n")
		want(t, read(t, r, 1), "one")
		must(t, r.Close(t.Context()))
	})
}

// rotate renames the files as logrotate does.
func rotate(t *testing.T, path string, files int) {
	t.Helper()
	for i := files; i > 0; i-- {
		if err := os.Rename(fmt.Sprintf("%s.%d", path, i), fmt.Sprintf("%s.%d", path, i+1)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	must(t, os.Rename(path, path+".1"))
}

func TestRotationsWhileStoppedAreReadOldestFirst(t *testing.T) {
	for _, follow := range []bool{false, true} {
		for name, test := range map[string]struct{ remove, want, warn string }{
			"all":              {"", "b c d e f", ""},
			"one is gone":      {".2", "b d e f", "[.2]"},
			"the last is gone": {".3", "c d e f", "earlier one is not beside it"},
		} {
			t.Run(fmt.Sprintf("%s, follow %v", name, follow), func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "app.log")
				var logs bytes.Buffer
				cfg := filesource.Config{
					Path: path, Follow: follow, Poll: time.Millisecond, Positions: &sourcetest.Positions{}, Logger: slog.New(slog.NewTextHandler(&logs, nil)),
				}
				old := time.Now().Add(-time.Hour)
				put(t, path+".1", "read before\n")
				must(t, os.Chtimes(path+".1", old, old))
				put(t, path, "a\nb\n")
				must(t, os.Chtimes(path, old.Add(time.Minute), old.Add(time.Minute)))
				r := open(t, cfg)
				want(t, read(t, r, 1), "a")
				must(t, r.Close(t.Context()))
				for i, content := range []string{"c\n", "d\n", "e\nf\n"} {
					rotate(t, path, 5)
					put(t, path, content)
					at := old.Add(time.Duration(i+2) * time.Minute)
					must(t, os.Chtimes(path, at, at))
				}
				if test.remove != "" {
					must(t, os.Remove(path+test.remove))
				}
				seen := map[string]bool{}
				var got []string
				for range len(strings.Fields(test.want)) { // a crash after each message
					r := open(t, cfg)
					b, err := r.Read(t.Context(), 1)
					must(t, err)
					if b.Lo == 1 && seen[b.Partition] {
						t.Fatalf("%s has two files", b.Partition)
					}
					seen[b.Partition] = true
					got = append(got, string(b.Messages[0].Value))
					must(t, r.Ack(t.Context(), b), r.Close(t.Context()))
				}
				want(t, got, strings.Fields(test.want)...)
				if warned := strings.Count(logs.String(), "level=WARN"); test.warn == "" && warned != 0 || test.warn != "" && (warned == 0 || !strings.Contains(logs.String(), test.warn)) {
					t.Fatal(logs.String())
				}
			})
		}
	}
}

func TestASwitchedSymbolicLinkIsAnotherFile(t *testing.T) {
	for _, running := range []bool{false, true} {
		t.Run(fmt.Sprintf("running %v", running), func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "link")
			must(t, os.Mkdir(filepath.Join(dir, "1"), 0o755), os.Mkdir(filepath.Join(dir, "2"), 0o755))
			put(t, filepath.Join(dir, "1", "f"), "head\none\n")
			put(t, filepath.Join(dir, "2", "f"), "head\ntwo\n")
			must(t, os.Symlink("1/f", path))
			cfg := filesource.Config{Path: path, Follow: true, Poll: time.Millisecond, Positions: &sourcetest.Positions{}}
			r := open(t, cfg)
			want(t, read(t, r, 1), "head")
			if !running {
				must(t, r.Close(t.Context()))
			}
			must(t, os.Symlink("2/f", path+".tmp"), os.Rename(path+".tmp", path))
			if !running {
				r = open(t, cfg)
			}
			want(t, read(t, r, 3), "one", "head", "two")
		})
	}
}

func TestADeletedAndRecreatedFileIsAnotherFile(t *testing.T) {
	for _, running := range []bool{false, true} {
		t.Run(fmt.Sprintf("running %v", running), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "a.log")
			put(t, path, "head\none\n")
			cfg := filesource.Config{Path: path, Follow: true, Poll: time.Millisecond, Positions: &sourcetest.Positions{}}
			r := open(t, cfg)
			want(t, read(t, r, 2), "head", "one")
			if !running {
				must(t, r.Close(t.Context()))
			}
			must(t, os.Remove(path))
			put(t, path, "head\none\ntwo\n")
			if !running {
				r = open(t, cfg)
			}
			want(t, read(t, r, 3), "head", "one", "two")
		})
	}
}
