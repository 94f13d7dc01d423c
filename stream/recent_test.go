package stream

import (
	"fmt"
	"testing"
)

// With more jobs than there is room for, the oldest entry goes. Before, all of them did, and what a handler had finished for the others was handed to it again.
func TestAFullRecentEvictsTheOldest(t *testing.T) {
	var r recent[int]
	for i := range maxRecent {
		r.put(fmt.Sprint(i), i)
	}
	r.put("0", 100) // it is the newest now
	r.put("more", 1)
	if _, ok := r.get("1"); ok {
		t.Error("the oldest entry was kept")
	}
	if v, ok := r.get("0"); !ok || v != 100 {
		t.Errorf("an entry that was put again is %d, %v, want 100", v, ok)
	}
	for i := 2; i < maxRecent; i++ {
		if v, ok := r.get(fmt.Sprint(i)); !ok || v != i {
			t.Fatalf("entry %d is %d, %v", i, v, ok)
		}
	}
	if len(r.values) != maxRecent || len(r.order) != maxRecent {
		t.Errorf("%d values in an order of %d, want %d", len(r.values), len(r.order), maxRecent)
	}
	r.remove("more")
	r.remove("more")
	if _, ok := r.get("more"); ok || len(r.order) != maxRecent-1 {
		t.Errorf("a removed entry is still there, order has %d", len(r.order))
	}
}
