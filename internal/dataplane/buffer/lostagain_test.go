package buffer_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/buffer/membuffer"
)

// A store loses its end a second time, while blocks that took the place of those that it lost first still wait. These are there: what is reported as lost is what the second loss took.
func TestSecondLossOfAnEndReportsWhatItTook(t *testing.T) {
	s := membuffer.NewStore(1 << 20)
	p := open(t, s, -1)
	writeAll := func(positions ...uint64) {
		t.Helper()
		for _, pos := range positions {
			if err := write(p, "in/0@x", pos, pos, 0, 10); err != nil {
				t.Fatal(err)
			}
		}
	}
	var first uint64
	var why string
	loseAfter := func(last, pos uint64) {
		t.Helper()
		s.LoseEnd(last)
		if err := write(p, "in/0@x", pos, pos, 0, 10); !errors.Is(err, buffer.ErrLostEnd) {
			t.Fatalf("a block that took the place of a lost one was stored: %v", err)
		}
		_ = p.Close(t.Context())
		p = must(buffer.Open(t.Context(), s.Open(), buffer.Options{Name: "test", OnCorrupt: func(seq uint64, _ []byte, err error) error {
			first, why = seq, err.Error()
			return nil
		}}))
	}
	writeAll(1, 2, 3, 4, 5, 6)
	loseAfter(4, 7)
	if first != 5 || !strings.Contains(why, "blocks 5 to 6 were not done") {
		t.Errorf("the first loss is reported from block %d on: %s", first, why)
	}
	writeAll(8, 9, 10, 11) // at 6 to 9; the one at 5 is that of the loss
	loseAfter(7, 12)
	if first != 8 || !strings.Contains(why, "blocks 8 to 9 were not done") {
		t.Errorf("the second loss took blocks 8 and 9, and is reported from block %d on: %s", first, why)
	}
}
