package ownership

import (
	"encoding/json"
	"testing"
	"testing/synctest"
	"time"
)

// TestNumbersOfProcesses: each process of a vertex has a number of its own, keeps it when it starts again, and leaves it to others when it has gone.
func TestNumbersOfProcesses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, first := &memory{}, map[int]uint64{}
		gone := map[string]bool{}
		join := func(name string, want int) {
			t.Helper()
			j, err := Join(t.Context(), Config{Store: store, Self: owner(name, "a")}, name, func(other string) bool { return gone[other] })
			number, seat := j.Number, j.Seat
			if err != nil || number != want {
				t.Fatalf("%s has the number %d, wanted %d: %v", name, number, want, err)
			}
			if seat.Name != name || seat.First < first[number]+seatRange || seat.First < uint64(time.Now().UnixNano()) {
				t.Fatalf("%s, number %d, begins at %d, and the one before began at %d", name, number, seat.First, first[number])
			}
			first[number] = seat.First
		}
		join("a", 0)
		join("b", 1)
		join("c", 2)
		join("b", 1) // again, a moment later: its clock is not what makes it greater
		join("b", 1)
		gone["b"] = true
		join("d", 1)
		gone["d"] = false
		gone["a"], gone["c"] = true, true
		join("a", 0) // it comes back before another takes its place
		gone["a"] = false
		join("e", 2)
		join("f", 3)

		// A process that has the vertex alone for a while forgets nothing.
		lease, err := acquire(t, store, owner("alone", "a"), Ended)
		if err != nil {
			t.Fatal(err)
		}
		if err := lease.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		var o Owner
		if err := json.Unmarshal(store.value, &o); err != nil || len(o.Seats) != 4 {
			t.Fatalf("%d seats are left: %v", len(o.Seats), err)
		}
		gone["f"] = true
		join("g", 3)
	})
}

func TestProcessesThatJoinAtTheSameMomentHaveDifferentNumbers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memory{}
		numbers := make(chan int)
		for _, name := range []string{"a", "b", "c", "d"} {
			go func() {
				j, err := Join(t.Context(), Config{Store: store, Self: owner(name, name)}, name, nil)
				if err != nil {
					t.Error(err)
				}
				numbers <- j.Number
			}()
		}
		seen := map[int]bool{}
		for range 4 {
			seen[<-numbers] = true
		}
		if len(seen) != 4 || !seen[0] || !seen[3] {
			t.Errorf("the numbers are %v", seen)
		}
	})
}
