package proxy

// wakeups collects the connections to which something was appended, and what else is to be done once no lock is held.
type wakeups struct {
	conns     []*conn
	endpoints []*endpoint // that may have room for a waiting stream
	clusters  []*cluster  // that may have room for a queued call
}

func (w *wakeups) add(c *conn) {
	for _, other := range w.conns {
		if other == c {
			return
		}
	}
	w.conns = append(w.conns, c)
}

// No lock is held by the caller: flush takes those of other connections, endpoints and clusters.
func (w *wakeups) flush() {
	for len(w.endpoints)+len(w.clusters) > 0 {
		if n := len(w.clusters); n > 0 {
			c := w.clusters[n-1]
			w.clusters = w.clusters[:n-1]
			c.serveQueue(w)
			continue
		}
		e := w.endpoints[len(w.endpoints)-1]
		w.endpoints = w.endpoints[:len(w.endpoints)-1]
		e.serveWaiting(w)
	}
	for i, c := range w.conns {
		c.wakeWriter()
		w.conns[i] = nil
	}
	w.conns = w.conns[:0]
}
