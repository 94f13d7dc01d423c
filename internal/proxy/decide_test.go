package proxy

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/h2/frame"
	"google.golang.org/grpc/codes"
)

// TestDecisions holds the decisions about a call against testdata/decisions.txt, which is written to be read.
func TestDecisions(t *testing.T) {
	text, err := os.ReadFile("testdata/decisions.txt")
	if err != nil {
		t.Fatal(err)
	}
	name := ""
	for i, line := range strings.Split(string(text), "\n") {
		if strings.HasPrefix(line, "== ") {
			name = line[3:]
		}
		kind, rest, ok := strings.Cut(line, ": ")
		if !ok || line[0] == '#' || line[0] == '=' {
			continue
		}
		given, want, ok := strings.Cut(rest, "->")
		if !ok {
			t.Fatalf("line %d has no ->", i+1)
		}
		t.Run(name, func(t *testing.T) {
			var got fmt.Stringer
			switch kind {
			case "retry":
				got = decideRetry(t, given)
			case "reset":
				got = decideReset(t, given)
			case "end":
				got = decideEnd(t, given)
			default:
				t.Fatalf("line %d: unknown kind %q", i+1, kind)
			}
			if got.String() != strings.TrimSpace(want) {
				t.Errorf("line %d: %s: got %v, want %s", i+1, strings.TrimSpace(given), got, strings.TrimSpace(want))
			}
		})
	}
}

func decideRetry(t *testing.T, given string) retryDecision {
	parts := strings.Split(given, "|")
	if len(parts) != 3 {
		t.Fatalf("%q is not call | failure | policy", given)
	}
	var a attempt
	each(t, parts[0], map[string]func(int){"replayable": func(int) { a.replayable = true }, "transparent": func(int) { a.transparent = true },
		"started": func(int) { a.responseStarted = true }, "ended": func(int) { a.ended = true }, "retries": func(n int) { a.retries = n }}, nil)
	var f attemptFailure
	each(t, parts[1], map[string]func(int){"unprocessed": func(int) { f.unprocessed = true }, "reset": func(int) { f.reset = true },
		"pushback": func(n int) { f.pushback, f.hasPushback = time.Duration(n)*time.Millisecond, true }}, func(c codes.Code) { f.code = c })
	var p retryPolicy
	each(t, parts[2], map[string]func(int){"attempts": func(n int) { p.attempts = n }}, func(c codes.Code) { p.on |= 1 << c })
	return a.decide(f, p)
}

func decideReset(t *testing.T, given string) resetMeaning {
	var code frame.Code
	var grpc, late, restore bool
	name, rest, _ := strings.Cut(strings.TrimSpace(given), " ")
	for code = 0; code.String() != name; code++ {
		if code > frame.HTTP11Required {
			t.Fatalf("unknown error code %q", name)
		}
	}
	each(t, rest, map[string]func(int){"grpc": func(int) { grpc = true }, "late": func(int) { late = true }, "restore": func(int) { restore = true }}, nil)
	return meaningOfReset(code, grpc, late, restore)
}

func decideEnd(t *testing.T, given string) endForm {
	var f endFacts
	each(t, given, map[string]func(int){"reset": func(int) { f.reset = true }, "trailers": func(int) { f.trailers = true }, "own": func(int) { f.own = true },
		"grpc": func(int) { f.grpc = true }, "headed": func(int) { f.headed = true }, "partial": func(int) { f.partial = true },
		"messages": func(n int) { f.messages = n }}, nil)
	return f.form()
}

// each calls the function of each word, with the number behind its =, and code for a word in upper case.
func each(t *testing.T, words string, known map[string]func(int), code func(codes.Code)) {
	t.Helper()
	for _, word := range strings.Fields(words) {
		name, value, _ := strings.Cut(word, "=")
		n, _ := strconv.Atoi(value)
		if use := known[name]; use != nil {
			use(n)
			continue
		}
		var c codes.Code
		if code == nil || c.UnmarshalJSON([]byte(strconv.Quote(word))) != nil {
			t.Fatalf("unknown word %q", word)
		}
		code(c)
	}
}

// TestBackoffDoublesUpToItsLimit also for numbers of retries at which a shift would overflow.
func TestBackoffDoublesUpToItsLimit(t *testing.T) {
	for retries, want := range map[int]time.Duration{1: 100 * time.Millisecond, 2: 200 * time.Millisecond, 3: 400 * time.Millisecond, 4: 800 * time.Millisecond, 5: time.Second, 255: time.Second} {
		if got := backoffLimit(100*time.Millisecond, time.Second, retries); got != want {
			t.Errorf("retry %d waits up to %v, want %v", retries, got, want)
		}
	}
	if got := backoffLimit(3*time.Hour, 4*time.Hour, 20); got != 4*time.Hour {
		t.Errorf("a long base waits up to %v, want 4h", got)
	}
}
