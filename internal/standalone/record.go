package standalone

import (
	"context"
	"encoding/json"
	"time"

	"github.com/levada-io/levada/internal/dataplane/isb"
)

// accept notes that the store is not settled any more, and writes the record if it differs.
func (r *runner) accept(ctx context.Context, h *held) error {
	for _, c := range h.changes {
		r.log.Info("pipeline changed", "owner", h.of(), "change", c.What)
	}
	if err := r.note(ctx, h, isb.Settled{}); err != nil {
		return err
	}
	record, err := h.wanted.Encode()
	if err != nil {
		return err
	}
	if limit := h.store.State().MaxValue(); len(record) > limit {
		// Without it the pipeline runs all the same; --drain-old then says that it cannot.
		h.wanted.Manifest = ""
		if record, err = h.wanted.Encode(); err != nil {
			return err
		}
	}
	if h.revision != 0 && h.stored != nil {
		if before, err := h.stored.Encode(); err == nil && string(before) == string(record) {
			return nil
		}
	}
	_, err = patient(ctx, r, h.of()+": write the topology record", func(ctx context.Context) (struct{}, error) {
		_, err := h.store.State().CompareAndSet(ctx, isb.KeyTopology, record, h.revision)
		if err != nil {
			// An attempt whose answer was lost looks like another process's.
			if stored, _, getErr := h.store.State().Get(ctx, isb.KeyTopology); getErr == nil && string(stored) == string(record) {
				return struct{}{}, nil
			}
		}
		return struct{}{}, err
	})
	return err
}

// note stores how the run ended, or that it has begun.
func (r *runner) note(ctx context.Context, h *held, s isb.Settled) error {
	value, err := json.Marshal(s)
	if err != nil {
		return err
	}
	_, err = patient(ctx, r, h.of()+": note how the run ended", func(ctx context.Context) (struct{}, error) {
		return struct{}{}, h.store.State().Put(ctx, isb.KeySettled, value)
	})
	return err
}

// settle notes which pipelines stopped in an orderly way: everything that was begun is finished, and every position is saved. err is what the run ended with.
func (r *runner) settle(ctx context.Context, pipelines []*Pipeline, err error) error {
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(5*time.Second, r.budget.Close()))
	defer cancel()
	for _, h := range r.held {
		s := isb.Settled{Settled: err == nil && !r.cutShort()}
		if !s.Settled && h.settled.Settled && !hasRead(end, pipelines, h) {
			s = h.settled // it never got so far
		}
		if !s.Settled || h.lease == nil || h.lease.Check(end) != nil {
			continue
		}
		if e := r.note(end, h, s); e != nil {
			r.log.Warn("the end of the run is not noted; changes of the pipeline may have to drain it first", "owner", h.of(), "error", e)
		}
	}
	return err
}

func hasRead(ctx context.Context, pipelines []*Pipeline, h *held) bool {
	for _, p := range pipelines {
		if p.store == nil || !p.store.Owner().Is(h.store.Owner()) {
			continue
		}
		for _, v := range p.Stats(ctx) {
			if v.In > 0 || v.Out > 0 {
				return true
			}
		}
	}
	return false
}
