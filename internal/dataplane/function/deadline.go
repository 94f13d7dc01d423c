package function

import (
	"path/filepath"
	"time"
)

// inCode follows how long each call has been in user code. A function of our SDK announces its calls (see announce.go), so their time is known
// whatever other calls do meanwhile. Of other functions only the answers are known: see caller.Oldest.
type inCode struct {
	path  string
	since map[uint64]time.Time // when a call was first seen in user code
}

func (i *instance) inCode() *inCode {
	return &inCode{path: filepath.Join(i.dir, announceFile), since: map[uint64]time.Time{}}
}

// oldest returns when the call that is in user code longest was first seen there; zero if none is, or if the function does not announce its calls.
func (c *inCode) oldest(now time.Time) (t time.Time) {
	calls := readAnnounceFile(c.path)
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
