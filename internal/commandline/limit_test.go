package commandline

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestThousandsOfEqualLogLinesAreAFewAndACount: the first are there, then one in a while with the number, and nothing is lost from the count.
func TestThousandsOfEqualLogLinesAreAFewAndACount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log, flush := Limited(slog.New(slog.NewJSONHandler(&out, nil)))
		one, other := log.With("vertex", "one"), log.With("vertex", "other")
		warn := func(l *slog.Logger, i int) { l.Warn("message dead-lettered", "id", i) }
		for i := range 3000 {
			warn(one, i)
			time.Sleep(10 * time.Millisecond) // 30 s in all
		}
		warn(other, 0) // another vertex is another site
		time.Sleep(30 * time.Second)
		warn(one, 4000) // it was quiet, so it begins again
		for i := range limitFirst {
			warn(other, i)
		}
		flush()
		counts := map[string]int{}
		lines := map[string]int{}
		for line := range strings.Lines(out.String()) {
			var r struct {
				Vertex     string
				Suppressed int
			}
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				t.Fatal(err)
			}
			lines[r.Vertex]++
			counts[r.Vertex] += max(1, r.Suppressed)
		}
		if counts["one"] != 3001 || counts["other"] != 1+limitFirst {
			t.Errorf("the lines tell of %v", counts)
		}
		if lines["one"] > limitFirst+5 || lines["other"] < 2 {
			t.Errorf("%v lines\n%s", lines, out.String())
		}
	})
}

func TestDebugLinesAreNotLimited(t *testing.T) {
	var out bytes.Buffer
	log, flush := Limited(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})))
	for i := range 100 {
		log.Debug("read", "i", i)
	}
	flush()
	if n := strings.Count(out.String(), "\n"); n != 100 {
		t.Errorf("%d lines", n)
	}
}

func BenchmarkLimited(b *testing.B) {
	log, flush := Limited(slog.New(slog.NewJSONHandler(io.Discard, nil)))
	defer flush()
	for i := range b.N {
		log.LogAttrs(context.Background(), slog.LevelWarn, "message dead-lettered", slog.String("id", fmt.Sprint(i)))
	}
}
