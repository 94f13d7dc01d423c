package filesink

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levada-io/levada/internal/dataplane/sink/sinktest"
)

// TestFilesThatOthersChange holds for a sink that runs and for one that is opened again: what is delivered after the change is in the file, nothing of others
// is written over, nothing comes twice, and one line of the log says what happened.
func TestFilesThatOthersChange(t *testing.T) {
	for name, test := range map[string]struct {
		change func(t *testing.T, path string)
		want   []string // lines of the file afterwards, before those that follow
		old    string   // what the file is called now, if it is kept; it has lines 1 to 5
		words  string
	}{
		"removed":              {func(t *testing.T, path string) { must(t, os.Remove(path)) }, nil, "", "removed or renamed|is empty|another one"},
		"renamed":              {func(t *testing.T, path string) { must(t, os.Rename(path, path+".1")) }, nil, "out.1", "removed or renamed|is empty|another one"},
		"replaced":             {func(t *testing.T, path string) { must(t, os.Rename(path, path+".1")); appendTo(t, path, "theirs") }, []string{"theirs"}, "out.1", "replaced|another one"},
		"truncated to nothing": {func(t *testing.T, path string) { must(t, os.Truncate(path, 0)) }, nil, "", "truncated|is empty"},
		"appended to": {
			func(t *testing.T, path string) { appendTo(t, path, "theirs\nno end") },
			[]string{"in/0/1", "in/0/2", "in/0/3", "in/0/4", "in/0/5", "theirs", "no end"}, "", "appended to",
		},
		"journal removed": {
			func(t *testing.T, path string) { must(t, os.Remove(path+Suffix)) },
			[]string{"in/0/1", "in/0/2", "in/0/3", "in/0/4", "in/0/5"}, "", "journal",
		},
	} {
		for _, running := range []bool{true, false} {
			if name == "journal removed" && !running {
				continue // then nobody knows what the file has
			}
			t.Run(fmt.Sprintf("%s, running %v", name, running), func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "out")
				var log bytes.Buffer
				cfg := Config{Path: path, Append: true, Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))}
				w := reopen(t, cfg)
				write(t, w, "in/0", 1, 5, 0)
				if !running {
					must(t, w.Close(t.Context()))
				}
				test.change(t, path)
				if !running {
					w = reopen(t, cfg)
				}
				write(t, w, "in/0", 4, 7, 0) // of which two are there already
				write(t, w, "in/0", 8, 9, 0)
				if got, want := lines(t, path), append(slices.Clone(test.want), "in/0/6", "in/0/7", "in/0/8", "in/0/9"); !slices.Equal(got, want) {
					t.Fatalf("the file has %q, want %q", got, want)
				}
				if test.old != "" {
					wantLane(t, filepath.Join(filepath.Dir(path), test.old), "in/0", 5)
				}
				said := false
				for words := range strings.SplitSeq(test.words, "|") {
					said = said || strings.Contains(log.String(), words)
				}
				if !said || strings.Count(log.String(), "\n") != 1 {
					t.Fatalf("log: %s", log.String())
				}
				must(t, w.Close(t.Context()))
				w = reopen(t, cfg)
				write(t, w, "in/0", 1, 10, 0)
				if got := lines(t, path); got[len(got)-1] != "in/0/10" || len(got) != len(test.want)+5 {
					t.Fatalf("opened again the file has %q", got)
				}
			})
		}
	}
}

func TestAFileOfAnotherSinkIsRefusedWhileRunning(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out")
	w := reopen(t, Config{Path: path, Append: true})
	write(t, w, "in/0", 1, 5, 0)
	other := reopen(t, Config{Path: path + "2", Append: true})
	write(t, other, "in/1", 1, 5, 0)
	must(t, os.Rename(path+"2", path))
	_, err := w.Write(t.Context(), sinktest.Block("in/0", 6, 7, 0))
	refuses(t, err, ErrLocked, "of its own")
	wantLane(t, path, "in/1", 5)
	must(t, os.Rename(path, path+"2"))
	write(t, w, "in/0", 6, 7, 0)
	if got := lines(t, path); !slices.Equal(got, []string{"in/0/6", "in/0/7"}) {
		t.Fatal(got)
	}
}

func TestReopenBeginsANewFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out")
	w := reopen(t, Config{Path: path})
	write(t, w, "in/0", 1, 5, 0)
	must(t, os.Rename(path, path+".1"))
	must(t, w.Reopen(t.Context()))
	if info, err := os.Stat(path); err != nil || info.Size() != 0 {
		t.Fatal(info, err)
	}
}

func TestFilesAreRotatedBySize(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out")
	cfg := Config{Path: path, Rotate: Rotation{Size: 20}}
	w := reopen(t, cfg)
	for i := uint64(1); i <= 30; i++ {
		write(t, w, "in/0", i, i, 0)
		if i%7 == 0 {
			must(t, w.Close(t.Context()))
			w = reopen(t, cfg)
			write(t, w, "in/0", max(i, 3)-2, i, 0) // again
		}
	}
	names, _ := filepath.Glob(path + ".2*")
	if len(names) < 5 {
		t.Fatalf("%q", names)
	}
	var all []string
	for _, name := range append(names, path) {
		all = append(all, lines(t, name)...)
	}
	if len(all) != 30 {
		t.Fatalf("%d lines in all files, want 30: %q", len(all), all)
	}
	for i, line := range all {
		if line != fmt.Sprintf("in/0/%d", i+1) {
			t.Fatalf("line %d is %q", i+1, line)
		}
	}
}

func TestFilesAreRotatedByTimeAndTheOldestRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "out")
		must(t, os.WriteFile(path+".notes", nil, 0o644))
		w := reopen(t, Config{Path: path, Rotate: Rotation{Every: time.Hour, Keep: 2}})
		for i := uint64(1); i <= 10; i++ {
			write(t, w, "in/0", i, i, 0)
			time.Sleep(30 * time.Minute)
		}
		names, _ := filepath.Glob(path + ".2*")
		if len(names) != 2 || len(lines(t, names[1])) != 2 || len(lines(t, path)) > 2 {
			t.Fatalf("%q", names)
		}
		if _, err := os.Stat(path + ".notes"); err != nil {
			t.Fatal(err)
		}
		must(t, w.Close(t.Context()))
	})
}
