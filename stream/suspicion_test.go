package stream

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "write the results of the text files in testdata into them")

// Each death of an owner must narrow the search, down to the one record that is poison: a step that did not would kill processes without end, and one
// that went too far would quarantine a record that has done nothing. The files say what happens, line by line, and what the suspicion is after it.
func TestSuspicionFollowsTheTextFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/suspicion/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files, error %v", err)
	}
	for _, name := range files {
		t.Run(filepath.Base(name), func(t *testing.T) {
			want, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			got := []byte(replaySuspicion(t, string(want)))
			if *rewrite {
				if err := os.WriteFile(name, got, 0o644); err != nil {
					t.Fatal(err)
				}
			} else if !bytes.Equal(got, want) {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

// replaySuspicion returns the text with what each of its lines leads to:
//
//	claim 100          an owner begins after record 100, the one before has released the job
//	claim 100 crashed  the one before has not
//	handle 101         records from 101 on are given to the handler
//	return             the handler came back
//	commit 104         records up to 104 are committed
func replaySuspicion(t *testing.T, text string) string {
	const commitRecords, maxCrashes = 16, 2
	var out strings.Builder
	var s suspicion
	var stored CrashState // what the next owner will know
	for line := range strings.Lines(text) {
		event, _, _ := strings.Cut(strings.TrimSpace(line), "->")
		event = strings.TrimSpace(event)
		if event == "" || strings.HasPrefix(event, "#") {
			out.WriteString(line)
			continue
		}
		var what, how string
		var seq uint64
		_, _ = fmt.Sscan(event, &what, &seq, &how) // what is missing stays empty
		keep := true
		switch what {
		case "claim":
			s = suspicion{CrashState: stored}.claimed(seq, how == "crashed", commitRecords, maxCrashes)
		case "handle":
			s = s.inFlight(seq)
		case "return":
			s = s.inFlight(0)
		case "commit":
			s, keep = s.committed(seq)
		default:
			t.Fatalf("unknown event %q", event)
		}
		if keep {
			stored = s.CrashState
		}
		fmt.Fprintf(&out, "%-18s -> %s\n", event, describe(s))
	}
	return out.String()
}

// describe is the suspicion in words.
func describe(s suspicion) string {
	parts := []string{}
	if s.BatchLimit > 0 {
		parts = append(parts, fmt.Sprintf("batches of %d, suspects up to %d", s.BatchLimit, s.SuspectUntil))
	}
	if s.InFlightSeq > 0 {
		parts = append(parts, fmt.Sprintf("in flight from %d", s.InFlightSeq))
	}
	if s.Crashes > 0 {
		parts = append(parts, fmt.Sprintf("crashes with it alone: %d", s.Crashes))
	}
	if s.poison > 0 {
		parts = append(parts, fmt.Sprintf("POISON %d", s.poison))
	}
	if s.replaying > 0 {
		parts = append(parts, fmt.Sprintf("%d may have been in a replay", s.replaying))
	}
	if len(parts) == 0 {
		return "nothing is suspected"
	}
	return strings.Join(parts, ", ")
}
