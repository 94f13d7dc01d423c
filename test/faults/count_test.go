package faults

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// ledger is a file of numbered lines, and the account of what came out of them.
type ledger struct {
	in, out string
	lines   int
}

func newLedger(t *testing.T, dir string, lines int, text func(i int) string) ledger {
	t.Helper()
	l := ledger{in: filepath.Join(dir, "in.txt"), out: filepath.Join(dir, "out.txt"), lines: lines}
	f, err := os.Create(l.in)
	if err != nil {
		t.Fatal(err)
	}
	w := bufio.NewWriter(f)
	for i := range lines {
		fmt.Fprintf(w, "%d %s\n", i, text(i))
	}
	if err := errors.Join(w.Flush(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return l
}

// account is what became of the lines of a ledger.
type account struct {
	lost, doubled, unwanted []int // line numbers
	unknown                 []string
}

// newAccount compares what came out with what went in. Lines for which skip is true must be missing.
func newAccount(lines int, out func(yield func(line string)), text func(i int) string, skip func(i int) bool) account {
	var a account
	seen := make([]int, lines)
	out(func(line string) {
		number, rest, _ := strings.Cut(line, " ")
		i, err := strconv.Atoi(number)
		if err != nil || i < 0 || i >= lines || rest != text(i) {
			a.unknown = append(a.unknown, line)
			return
		}
		seen[i]++
	})
	for i, n := range seen {
		switch {
		case skip(i) && n > 0:
			a.unwanted = append(a.unwanted, i)
		case !skip(i) && n == 0:
			a.lost = append(a.lost, i)
		case n > 1:
			a.doubled = append(a.doubled, i)
		}
	}
	return a
}

func (a account) exact() bool {
	return len(a.lost)+len(a.doubled)+len(a.unwanted)+len(a.unknown) == 0
}

func (a account) String() string {
	s := fmt.Sprintf("%d lost%s, %d doubled%s", len(a.lost), ranges(a.lost), len(a.doubled), ranges(a.doubled))
	if len(a.unwanted) > 0 {
		s += fmt.Sprintf(", %d that should not be there%s", len(a.unwanted), ranges(a.unwanted))
	}
	if len(a.unknown) > 0 {
		s += fmt.Sprintf(", %d lines that were never written, the first is %q", len(a.unknown), a.unknown[0])
	}
	return s
}

// ranges renders sorted line numbers as ranges, at most eight of them.
func ranges(numbers []int) string {
	var parts []string
	for i := 0; i < len(numbers); {
		j := i
		for j+1 < len(numbers) && numbers[j+1] == numbers[j]+1 {
			j++
		}
		if len(parts) == 8 {
			parts = append(parts, "...")
			break
		}
		if i == j {
			parts = append(parts, strconv.Itoa(numbers[i]))
		} else {
			parts = append(parts, fmt.Sprintf("%d-%d", numbers[i], numbers[j]))
		}
		i = j + 1
	}
	if len(parts) == 0 {
		return ""
	}
	return " (lines " + strings.Join(parts, ", ") + ")"
}

// account reads the output file. A line without its line feed, which a killed process left, counts as a line.
func (l ledger) account(t *testing.T, text func(i int) string, skip func(i int) bool) account {
	t.Helper()
	f, err := os.Open(l.out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	scan := bufio.NewScanner(f)
	scan.Buffer(nil, 1<<20)
	a := newAccount(l.lines, func(yield func(string)) {
		for scan.Scan() {
			yield(scan.Text())
		}
	}, text, skip)
	if err := scan.Err(); err != nil {
		t.Fatal(err)
	}
	return a
}

// check fails the test unless each line came out once.
func (l ledger) check(t *testing.T, text func(i int) string, skip func(i int) bool) {
	t.Helper()
	if a := l.account(t, text, skip); !a.exact() {
		t.Errorf("of %d lines: %v", l.lines, a)
	}
}

// count is check for runs in which lines may be lost or doubled.
func (l ledger) count(t *testing.T) (lost, doubled int) {
	t.Helper()
	a := l.account(t, plain, nothing)
	return len(a.lost), len(a.doubled)
}

// size is the number of bytes that have come out.
func (l ledger) size() int64 {
	info, err := os.Stat(l.out)
	if err != nil {
		return 0
	}
	return info.Size()
}

func plain(i int) string { return strings.Repeat("x", i%50) }

func nothing(int) bool { return false }

// TestAccount shows that the ledger sees what it is there to see.
func TestAccount(t *testing.T) {
	for name, c := range map[string]struct {
		out   []string
		exact bool
		want  string
	}{
		"exact":   {[]string{"0 ", "1 x", "2 xx"}, true, "0 lost, 0 doubled"},
		"lost":    {[]string{"1 x"}, false, "2 lost (lines 0, 2), 0 doubled"},
		"doubled": {[]string{"0 ", "1 x", "2 xx", "2 xx", "1 x"}, false, "0 lost, 2 doubled (lines 1-2)"},
		"torn":    {[]string{"0 ", "1 x", "2 x"}, false, `1 lost (lines 2), 0 doubled, 1 lines that were never written, the first is "2 x"`},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAccount(3, func(yield func(string)) {
				for _, line := range c.out {
					yield(line)
				}
			}, plain, nothing)
			if a.exact() != c.exact || a.String() != c.want {
				t.Errorf("exact %v, %q; want %v, %q", a.exact(), a, c.exact, c.want)
			}
		})
	}
}
