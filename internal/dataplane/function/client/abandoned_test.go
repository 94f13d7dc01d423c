package client

import (
	"sync/atomic"
	"testing"

	"github.com/levada-io/levada/internal/flow"
)

// A call that its caller gives up, as when a partition goes to another process, keeps its requests' slots until they are answered. They would be missing for good otherwise,
// and after some such calls the function would get nothing more.
func TestSlotsOfAnAbandonedCallAreFreeOnceAnswered(t *testing.T) {
	for _, c := range []struct {
		name  string
		codec *codec
		ends  []bool // of the answers to one request
	}{{"unary", &unaryMap, []bool{false}}, {"streamed", &streamMap, []bool{false, true}}} {
		t.Run(c.name, func(t *testing.T) {
			p := &pipe{codec: c.codec, strays: &atomic.Uint64{}, slots: make([]slot, 2)}
			p.room.L = &p.mu
			given := newCall(make([]flow.Message, 2))
			for i := range p.slots {
				p.slots[i] = slot{call: given, index: i, id: uint64(2 + i)}
			}
			p.abandon(given, nil)
			for i, id := range []string{"2", "3"} {
				for _, end := range c.ends {
					if len(p.free) != i {
						t.Fatalf("%d slots are free before the answer to request %s, want %d", len(p.free), id, i)
					}
					if err := p.answer(&response{id: []byte(id), end: end}); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := p.answer(&response{id: []byte("2"), end: true}); err != nil {
				t.Fatal(err)
			}
			if len(p.free) != 2 || p.strays.Load() == 0 {
				t.Errorf("%d slots are free and %d answers are strays, want 2, and the second answer as one", len(p.free), p.strays.Load())
			}
		})
	}
}
