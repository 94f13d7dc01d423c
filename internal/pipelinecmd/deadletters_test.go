package pipelinecmd

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"unicode"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/standalone"
)

// TestNothingInALetterCommandsTheTerminal shows letters in which every text holds control characters.
func TestNothingInALetterCommandsTheTerminal(t *testing.T) {
	const evil = "a\x1b[2J\x1b]0;title\x07\r\u202eb\u0085\x00"
	l := deadletter.Letter{
		Name: "out." + evil, Pipeline: evil, Vertex: evil, ID: evil,
		Failure: deadletter.Failure{Reason: deadletter.Reason(evil), Error: evil, Stack: evil, Signal: evil, Output: evil},
	}
	var out bytes.Buffer
	if err := listLetters(&out, []deadletter.Letter{l}, true); err != nil {
		t.Fatal(err)
	}
	if err := showLetter(&out, &standalone.LetterView{Letter: l, Keys: []string{evil}, Headers: map[string]string{evil: evil}, Value: []byte(evil)}); err != nil {
		t.Fatal(err)
	}
	for _, r := range out.String() {
		if unicode.IsControl(r) && r != '\n' && r != '\t' || r == '\u202e' {
			t.Fatalf("%q is in the output:\n%q", r, out.String())
		}
	}
}

// pages is a store of n letters.
type pages struct {
	standalone.DeadLetters
	n, asked int
}

func (p *pages) Page(_ context.Context, q standalone.LetterQuery) (page standalone.LetterPage, err error) {
	p.asked++
	at := 0
	_, _ = fmt.Sscanf(q.After, "%d", &at)
	for ; at < p.n && len(page.Letters) < q.Limit; at++ {
		page.Letters = append(page.Letters, deadletter.Letter{Pipeline: "p", Name: fmt.Sprintf("v.%d", at)})
	}
	if at < p.n {
		page.Next = fmt.Sprint(at)
	}
	return page, nil
}

func TestALimitEndsTheListAndNamesTheNextPage(t *testing.T) {
	for _, c := range []struct{ letters, limit, want, asked int }{
		{12_000, 100, 100, 1}, {12_000, 1200, 1200, 3}, {12_000, 0, 12_000, 24}, {50, 100, 50, 1}, {0, 100, 0, 1}, {100, 100, 100, 1},
	} {
		p := &pages{n: c.letters}
		var names []string
		next, n, err := eachPage(t.Context(), p, standalone.LetterQuery{Limit: c.limit}, func(letters []deadletter.Letter, first bool) error {
			if first != (len(names) == 0) {
				t.Errorf("%+v: first is %v after %d letters", c, first, len(names))
			}
			for i := range letters {
				names = append(names, letters[i].Name)
			}
			return nil
		})
		if err != nil || n != c.want || len(names) != c.want || p.asked != c.asked || (next != "") != (c.want < c.letters) {
			t.Errorf("%+v: %d letters (%d shown) of %d pages, next %q, %v", c, n, len(names), p.asked, next, err)
		}
	}
}
