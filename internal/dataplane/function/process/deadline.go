package process

import (
	"path/filepath"
	"time"

	"github.com/levada-io/levada/internal/dataplane/function/client"
)

// InCode follows how long each call has been in user code. A function of our SDK announces its calls (see client.ReadAnnounceFile), so their time is known
// whatever other calls do meanwhile. Of other functions only the answers are known: see client.Caller.Oldest.
type InCode struct {
	path  string
	since map[uint64]time.Time // when a call was first seen in user code
}

// InCode returns what follows the calls of the process. It is used by one goroutine.
func (i *Instance) InCode() *InCode {
	return &InCode{path: filepath.Join(i.dir, client.AnnounceFile), since: map[uint64]time.Time{}}
}

// Oldest returns when the call that is in user code longest was first seen there; zero if none is, or if the function does not announce its calls.
func (c *InCode) Oldest(now time.Time) (t time.Time) {
	if c.path == "" {
		return t
	}
	calls := client.ReadAnnounceFile(c.path)
	for id := range c.since {
		if !calls[id] {
			delete(c.since, id)
		}
	}
	for id := range calls {
		since, ok := c.since[id]
		if !ok {
			since = now
			c.since[id] = now
		}
		if t.IsZero() || since.Before(t) {
			t = since
		}
	}
	return t
}

// NotAnnounced follows a function that announces nothing.
func NotAnnounced() *InCode { return &InCode{} }
