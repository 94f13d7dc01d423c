package standalone

import (
	"context"
	"errors"
	"net/http"
)

// probe answers 204, or 503 with the reason.
func probe(check func(context.Context) error) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		if err := check(req.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}
}

// live returns an error only if a restart of the process may help. It does not where the disk or the store of a broker is full, or where stored blocks are damaged:
// a process that is restarted meets the same, and what it has in flight is repeated.
func (a *api) live(context.Context) error {
	if a.r.broker != nil {
		return a.r.broker.Stuck()
	}
	return nil
}

// readiness returns what keeps messages from being taken or delivered, as long as it lasts.
func (a *api) readiness(ctx context.Context) error {
	if !a.ready.Load() {
		return errors.New("starting or stopping")
	}
	if a.r.broker != nil {
		if err := errors.Join(a.r.broker.Healthy(ctx), a.r.broker.Room()); err != nil {
			return err
		}
	} else if !a.r.conn.IsConnected() {
		return errors.New("the broker does not answer, reconnecting")
	}
	var troubles []error
	for _, p := range a.pipelines {
		for _, parts := range p.partitions {
			for _, part := range parts {
				troubles = append(troubles, part.Health())
			}
		}
	}
	return errors.Join(troubles...)
}
