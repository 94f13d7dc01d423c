package stream

import (
	"cmp"
	"context"
	"time"
)

// refreshAge is how old a connection has to be for Refresh to replace it: the jobs of a worker are denied together, and one new
// connection is for all of them.
const refreshAge = time.Second

// Refresh is for WorkerConfig.Refresh and ReaderConfig.Refresh: the next Dial of the job's target makes a new connection, with a handshake
// of its own, so certificates and tokens that the credentials read for a connection are read again. Streams on the old connection are
// not touched; it is closed once it has none.
func (c *Connections) Refresh(_ context.Context, job Job, _ error) error {
	target := cmp.Or(job.Target, c.target)
	c.mu.Lock()
	defer c.mu.Unlock()
	if conn := c.conns[target]; conn != nil && time.Since(conn.made) >= refreshAge {
		delete(c.conns, target)
		c.retired[conn] = struct{}{}
	}
	return nil
}
