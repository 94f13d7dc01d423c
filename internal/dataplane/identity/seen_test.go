package identity

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/flow"
	"pgregory.net/rapid"
)

// TestEachPositionCountsOnce sends every position of a lane in random groups, again and again, in the disorder that crashes and
// retries make, with saves and restarts of the reader between, and checks that each message is admitted exactly once.
func TestEachPositionCountsOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const last = 60
		s := New(time.Hour, 100)
		admitted := map[uint64]int{}
		durable := map[uint64]bool{}
		floor := uint64(0)
		steps := rapid.IntRange(1, 80).Draw(t, "steps")
		send := func(lo, hi uint64) {
			b := &flow.Block{Lane: "in/0", Lo: lo, Hi: hi, Floor: floor}
			for p := lo; p <= hi; p++ {
				b.Messages = append(b.Messages, flow.Message{Pos: p})
			}
			if lost := s.Admit(b, time.Time{}); len(lost) > 0 {
				t.Fatalf("claims to have lost %v", lost)
			}
			for _, m := range b.Messages {
				admitted[m.Pos]++
			}
			for p := lo; p <= hi; p++ {
				durable[p] = true
			}
			for durable[floor+1] {
				floor++
			}
			if rapid.Bool().Draw(t, "the writer forgets its floor") {
				floor = rapid.Uint64Range(0, floor).Draw(t, "floor")
			}
		}
		for range steps {
			lo := rapid.Uint64Range(1, last).Draw(t, "lo")
			send(lo, rapid.Uint64Range(lo, min(last, lo+8)).Draw(t, "hi"))
			if rapid.IntRange(0, 9).Draw(t, "restart") == 0 {
				saved := s.Marshal()
				s = New(time.Hour, 100)
				if err := s.Unmarshal(saved); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(saved, s.Marshal()) {
					t.Fatal("a saved state reads back as another one")
				}
			}
		}
		send(1, last)
		for p := uint64(1); p <= last; p++ {
			if admitted[p] != 1 {
				t.Fatalf("position %d was admitted %d times", p, admitted[p])
			}
		}
	})
}

func TestSpansStayBoundedByWhatIsInFlight(t *testing.T) {
	s := New(time.Hour, 100)
	const inFlight = 8
	for p := uint64(1); p < 100_000; p++ {
		q := (p - 1) ^ 1 + 1 // neighbours arrive in the wrong order
		s.Admit(&flow.Block{Lane: "a/0", Lo: q, Hi: q, Floor: max(p, inFlight) - inFlight}, time.Time{})
		if s.Spans() > inFlight {
			t.Fatalf("%d spans after position %d", s.Spans(), p)
		}
	}
}

func TestHole(t *testing.T) {
	s := New(time.Hour, 100)
	admit := func(pos, prev, floor uint64) []uint64 {
		return s.Admit(&flow.Block{Lane: "a/0", Lo: pos, Hi: pos, Prev: prev, Floor: floor}, time.Time{})
	}
	admit(10, 0, 0)
	admit(30, 20, 0) // 20 is late: a retry
	if lost := admit(20, 10, 0); lost != nil {
		t.Fatalf("20 came, and %v is called lost", lost)
	}
	admit(50, 40, 20)
	if lost := admit(60, 50, 45); !slices.Equal(lost, []uint64{40}) {
		t.Fatalf("40 was promised to be durable and never came; lost = %v", lost)
	}
	if lost := admit(70, 60, 65); lost != nil {
		t.Fatalf("told twice: %v", lost)
	}
}

func TestIDs(t *testing.T) {
	s := New(time.Minute, 3)
	at := time.Unix(0, 0)
	admit := func(ids ...string) int {
		b := &flow.Block{Lane: "http/0", ByID: true}
		for _, id := range ids {
			b.Messages = append(b.Messages, flow.Message{ID: id})
		}
		s.Admit(b, at)
		return len(b.Messages)
	}
	if n := admit("a", "b", "a"); n != 2 {
		t.Fatalf("%d of a, b, a", n)
	}
	at = at.Add(59 * time.Second)
	if n := admit("a"); n != 0 {
		t.Fatal("a is forgotten within the window")
	}
	at = at.Add(2 * time.Second)
	if n := admit("a"); n != 1 {
		t.Fatal("a is remembered for ever")
	}
	if admit("c", "d", "e"); s.IDs() > 3 {
		t.Fatalf("%d ids kept, at most 3 wanted", s.IDs())
	}
}

func FuzzUnmarshal(f *testing.F) {
	s := New(time.Hour, 10)
	s.Admit(&flow.Block{Lane: "a/0", Lo: 5, Hi: 9, Prev: 3}, time.Time{})
	f.Add(s.Marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		s := New(time.Hour, 10)
		if s.Unmarshal(b) == nil && len(s.Marshal()) > len(b)+16 {
			t.Fatal("state grew")
		}
	})
}
