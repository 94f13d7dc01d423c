package jetstreamsink

import (
	"strings"
	"sync"
	"time"

	"github.com/levada-io/levada/internal/flow"
)

// duplicates watches for messages that the stream does not take because it knows their id. That is as it should be for one that was published before and
// not confirmed. It is worth a word for one that this process publishes for the first time.
type duplicates struct {
	cfg *Config

	mu sync.Mutex
	// unconfirmed are the ids that this process published in a write that failed. The caller writes them again.
	unconfirmed map[string]struct{}
	untold      int
	logged      time.Time
}

// logEvery is how often duplicates are logged at most.
const logEvery = time.Minute

// failed remembers the messages of a write that will come again.
func (d *duplicates) failed(b *flow.Block) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.unconfirmed == nil {
		d.unconfirmed = map[string]struct{}{}
	}
	for i := range b.Messages {
		d.unconfirmed[strings.Clone(b.Messages[i].ID)] = struct{}{}
	}
}

// settled counts the duplicates of a write that succeeded, by their index in the block, and forgets its messages.
func (d *duplicates) settled(b *flow.Block, dropped []int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	first := 0
	for _, i := range dropped {
		if _, again := d.unconfirmed[b.Messages[i].ID]; !again {
			first++
		}
	}
	if len(d.unconfirmed) > 0 {
		for i := range b.Messages {
			delete(d.unconfirmed, b.Messages[i].ID)
		}
	}
	if first == 0 {
		return
	}
	d.cfg.Duplicates(first)
	d.untold += first
	if time.Since(d.logged) >= logEvery {
		d.tell()
	}
}

// tell logs what was not logged yet. mu is held.
func (d *duplicates) tell() {
	d.logged = time.Now()
	d.cfg.Logger.Warn("stream already has messages that this process published for the first time, not stored again: "+
		"they were published before a crash or restart, or the source delivered them twice",
		"stream", d.cfg.Stream, "subject", d.cfg.Subject, "messages", d.untold, "writer", d.cfg.Writer)
	d.untold = 0
}

func (d *duplicates) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.untold > 0 {
		d.tell()
	}
}
