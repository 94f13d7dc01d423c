package shard

import (
	"testing"
	"time"
)

// TestSuccessorOfAnOwnerKeepsItsSession: the claim of a process that was replaced can be stored late, after its successor has announced itself. The lease then names an
// incarnation that has ended, and the newest session that is known is older than the lease. To remove that session would end the successor, which lives.
func TestSuccessorOfAnOwnerKeepsItsSession(t *testing.T) {
	m := NewMember("b", "1", []string{"s0"}, Timing{}, 0)
	step := func(at time.Duration, e Event) []Action { return m.Step(at, e) }
	step(0, Observed{Key{Session, "a"}, Record{Incarnation: "new", Renewal: 1}, true, 32})
	step(0, Observed{Key{Lease, "s0"}, Record{Owner: "a", Incarnation: "old", Epoch: 3}, true, 37})
	announce := step(0, Synced{})[0].(Write)
	m.shareOut = func(members, _ []string) []int { // s0 belongs to b
		for i, name := range members {
			if name == "b" {
				return []int{i}
			}
		}
		return []int{0}
	}
	actions := step(0, Written{announce.ID, 38})
	for at := time.Duration(0); at < 2*time.Second; at += 100 * time.Millisecond {
		var next []Action
		for _, a := range actions {
			if remove, ok := a.(Remove); ok {
				t.Fatalf("at %v: %+v", at, remove)
			}
			if w, ok := a.(Write); ok && w.Key.Kind == Session {
				next = append(next, step(at, Written{w.ID, 39 + uint64(at/time.Millisecond)})...)
			}
		}
		actions = append(next, step(at, Tick{})...)
	}
	claimed := false
	for _, a := range step(2*time.Second, Observed{Key{Session, "a"}, Record{Incarnation: "new", Renewal: 2}, true, 5000}) {
		w, ok := a.(Write)
		claimed = claimed || ok && w.Key.Kind == Lease && w.Record.Epoch == 4 && w.Expect == 37
	}
	if !claimed {
		t.Error("the renewal of the successor shows that the old owner has ended, and the shard is not claimed")
	}
}
