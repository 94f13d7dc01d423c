package jetstreambuffer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/natslink"
)

// JetStream does not repair a replica whose files are damaged, and does not report it: it answers as if the messages had never been. So a message counts as lost
// only after every replica was asked, and a replica is asked by making it the leader.

// Find implements buffer.Driver.
func (d *driver) Find(ctx context.Context, lo, hi uint64, good func(buffer.Entry) bool) ([]buffer.Entry, error) {
	s := &search{d: d, found: map[uint64]buffer.Entry{}, good: good}
	for seq := lo; seq <= hi; seq++ {
		s.left = append(s.left, seq)
	}
	if err := s.run(ctx); err != nil {
		return nil, d.classify(ctx, fmt.Errorf("look for blocks %d to %d: %w", lo, hi, err))
	}
	entries := make([]buffer.Entry, 0, len(s.found))
	for _, e := range s.found {
		entries = append(entries, e)
	}
	slices.SortFunc(entries, func(a, b buffer.Entry) int { return int(int64(a.Seq) - int64(b.Seq)) })
	return entries, nil
}

type search struct {
	d     *driver
	left  []uint64 // not found yet
	found map[uint64]buffer.Entry
	good  func(buffer.Entry) bool
}

// run asks the leader, then any replica some times, and then makes each replica the leader.
func (s *search) run(ctx context.Context) error {
	first, err := s.leader(ctx)
	if err != nil {
		return err
	}
	if err := s.ask(ctx); err != nil || len(s.left) == 0 || first.alone() {
		return err
	}
	missing := len(s.left)
	if err := s.askAny(ctx, 2*len(first.all)); err != nil {
		return err
	}
	// Before each is asked it must be there: one that is offline may be the one that has it.
	if len(s.left) > 0 && len(first.offline) > 0 {
		return fmt.Errorf("replicas %v are offline, and may have what the others do not", first.offline)
	}
	asked := []string{first.name}
	for len(s.left) > 0 && len(asked) < len(first.all) {
		now, err := s.moveLeader(ctx, func(name string) bool { return !slices.Contains(asked, name) })
		if err != nil {
			return err
		}
		asked = append(asked, now)
		if err := s.ask(ctx); err != nil {
			return err
		}
	}
	if found := missing - len(s.left); found > 0 {
		s.d.cfg.Logger.Error("replica does not hold blocks that others hold, reading from the others: rebuild its store, see docs/brokers.md",
			"stream", s.d.cfg.Stream, "replica", first.name, "blocks", found)
	}
	return nil
}

// leadership is who leads a stream.
type leadership struct {
	name    string
	all     []string
	offline []string
}

func (l leadership) alone() bool { return len(l.all) < 2 }

func (s *search) leader(ctx context.Context) (leadership, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	stream, err := s.d.js.Stream(ctx, s.d.cfg.Stream)
	if err != nil {
		return leadership{}, err
	}
	info := stream.CachedInfo().Cluster
	if info == nil { // a server alone
		return leadership{}, nil
	}
	if info.Leader == "" {
		return leadership{}, natslink.ErrNoLeader
	}
	l := leadership{name: info.Leader, all: []string{info.Leader}}
	for _, r := range info.Replicas {
		l.all = append(l.all, r.Name)
		if r.Offline {
			l.offline = append(l.offline, r.Name)
		}
	}
	return l, nil
}

// ask asks the leader for all that is left.
func (s *search) ask(ctx context.Context) error {
	return s.each(func(seq uint64) (buffer.Entry, bool, error) { return s.d.get(ctx, seq) })
}

// get asks the leader for an entry.
func (d *driver) get(ctx context.Context, seq uint64) (e buffer.Entry, ok bool, err error) {
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message *struct {
			Subject string    `json:"subject"`
			Seq     uint64    `json:"seq"`
			Data    []byte    `json:"data"`
			Head    []byte    `json:"hdrs"`
			Time    time.Time `json:"time"`
		} `json:"message"`
	}
	if err := d.request(ctx, "STREAM.MSG.GET."+d.cfg.Stream, map[string]uint64{"seq": seq}, &answer); err != nil {
		return e, false, err
	}
	switch {
	case answer.Message != nil:
		m := answer.Message
		head, err := nats.DecodeHeadersMsg(m.Head)
		if err != nil && len(m.Head) > 0 {
			return e, false, nil // not as it was written
		}
		return d.reads.show(m.Subject, entryOf(m.Seq, m.Data, head, m.Time)), true, nil
	case answer.Error != nil && answer.Error.ErrorCode != jetstream.JSErrCodeMessageNotFound:
		return e, false, answer.Error
	}
	return e, false, nil
}

// askAny asks replicas that the servers choose.
func (s *search) askAny(ctx context.Context, times int) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	stream, err := s.d.js.Stream(ctx, s.d.cfg.Stream)
	if err != nil {
		return err
	}
	for range times {
		if len(s.left) == 0 || ctx.Err() != nil {
			return nil
		}
		_ = s.each(func(seq uint64) (buffer.Entry, bool, error) {
			m, err := stream.GetMsg(ctx, seq)
			if err != nil {
				return buffer.Entry{}, false, nil // each is asked by name below
			}
			return s.d.reads.show(m.Subject, entryOf(m.Sequence, m.Data, m.Header, m.Time)), true, nil
		})
	}
	return nil
}

func (s *search) each(get func(seq uint64) (buffer.Entry, bool, error)) (err error) {
	s.left = slices.DeleteFunc(s.left, func(seq uint64) bool {
		if err != nil {
			return false
		}
		e, ok, failed := get(seq)
		if err = failed; err != nil || !ok || !s.good(e) {
			return false
		}
		s.found[seq] = e
		return true
	})
	return err
}

// moveLeader makes another replica the leader, until one leads that want accepts.
func (s *search) moveLeader(ctx context.Context, want func(name string) bool) (string, error) {
	deadline := time.Now().Add(20 * time.Second)
	for {
		l, err := s.leader(ctx)
		if err == nil && want(l.name) {
			return l.name, nil
		}
		if err == nil {
			ask := map[string]any{}
			for _, name := range l.all {
				if want(name) {
					ask["placement"] = map[string]string{"preferred": name}
				}
			}
			var answer struct {
				Error *jetstream.APIError `json:"error"`
			}
			if err = s.d.request(ctx, "STREAM.LEADER.STEPDOWN."+s.d.cfg.Stream, ask, &answer); err == nil && answer.Error != nil {
				err = answer.Error
			}
		}
		if time.Now().After(deadline) {
			return "", fmt.Errorf("another replica could not be made the leader, and so not be asked: %w", errors.Join(err, natslink.ErrNoLeader))
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
}

// request sends a request to the JetStream API that the client library has no call for.
func (d *driver) request(ctx context.Context, api string, body, answer any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	m, err := d.js.Conn().RequestWithContext(ctx, jetstream.DefaultAPIPrefix+api, data)
	if err != nil {
		return err
	}
	return json.Unmarshal(m.Data, answer)
}
