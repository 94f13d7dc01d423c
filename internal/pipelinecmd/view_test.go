package pipelinecmd

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// TestTableFitsItsTerminal: no row is wider than the terminal, and what matters most stays.
func TestTableFitsItsTerminal(t *testing.T) {
	lines := []line{
		{Pipeline: "orders", Vertex: "a-source-with-a-long-name", Read: 123_456_789, ReadRate: 98_765, Written: 123_456_000, Pending: -1, LatencyMs: 1234.5},
		{Pipeline: "orders", Vertex: "out", Read: 123_456_789, Written: 123_456_000, Pending: 30_000, Errors: 12_345, Dropped: 99_999, Duplicates: 5_500, DeadLetters: 42},
	}
	for width := 30; width < 140; width++ {
		rows := table(lines, width, 20)
		for _, row := range rows {
			if n := utf8.RuneCountInString(row); n > width {
				t.Fatalf("a row of %d characters on a terminal of %d:\n%s", n, width, strings.Join(rows, "\n"))
			}
		}
		if width >= 60 && (!strings.Contains(rows[0], "dead") || !strings.Contains(rows[2], "42")) {
			t.Fatalf("dead letters do not show at %d characters:\n%s", width, strings.Join(rows, "\n"))
		}
	}
	if rows := table(lines[:1], 79, 20); !strings.Contains(rows[1], "a-source-with-a-long-name ") || strings.Contains(rows[0], "dead") {
		t.Errorf("80 columns:\n%s", strings.Join(rows, "\n"))
	}
	many := make([]line, 100)
	for i := range many {
		many[i].Vertex = "v"
	}
	if rows := table(many, 79, 22); len(rows) != 22 || rows[21] != "… and 80 more" {
		t.Errorf("%d rows, the last is %q", len(rows), rows[len(rows)-1])
	}
}

func TestShortNumbers(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 9_999: "9999", 10_500: "10.5k", 999_949: "999.9k", 999_950: "1.0M", 12_345_678: "12.3M", 5_000_000_000: "5.0G"} {
		if got := short(n); got != want {
			t.Errorf("%d is %s, want %s", n, got, want)
		}
	}
}
