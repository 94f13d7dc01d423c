package isbtest

import (
	"context"
	"errors"
	"testing"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/shard"
)

// sharing is a partition whose readers come one after the other; false for a service whose vertices have one process.
type sharing struct {
	t *testing.T
	h Harness
}

func shares(t *testing.T, h Harness) (*sharing, bool) {
	_, ok := open(t, h, pipeline("p")).(isb.Sharer)
	return &sharing{t, h}, ok
}

func (s *sharing) opener() *isb.Opener {
	service := connect(s.t, s.h)
	return &isb.Opener{Service: service, Store: openAt(s.t, service, pipeline("p"))}
}

func noLoss(buffer.Loss) {}

// start opens the partition for a start of its shard.
func (s *sharing) start(epoch uint64, incarnation string) (p *buffer.Partition, fenced chan error) {
	s.t.Helper()
	fenced = make(chan error, 1)
	p, err := s.opener().Shard(ctx(s.t), "cat", 0, 0, shard.Ownership{Shard: "p0", Epoch: epoch, Incarnation: incarnation}, func(err error) { fenced <- err }, buffer.Options{}, noLoss)
	must(s.t, err)
	return p, fenced
}

// alone opens it as the only process of the pipeline does.
func (s *sharing) alone() *buffer.Partition {
	s.t.Helper()
	p, err := s.opener().Partition(ctx(s.t), "cat", 0, buffer.Options{}, noLoss)
	must(s.t, err)
	return p[0]
}

func (s *sharing) read(p *buffer.Partition) *buffer.Delivery {
	s.t.Helper()
	d, err := p.Read(ctx(s.t))
	must(s.t, err)
	return d
}

// nothing fails unless all that is stored is done.
func (s *sharing) nothing(p *buffer.Partition) {
	s.t.Helper()
	if n := p.Pending(); n != 0 {
		s.t.Errorf("%d messages are pending, want none", n)
	}
}

// frozenOwner: an owner that is frozen with work in flight and goes on after another has taken over. What it saves and removes must have no effect, and what both have read
// must have the same positions: that is what makes its writes harmless.
func frozenOwner(t *testing.T, h Harness) {
	s, ok := shares(t, h)
	if !ok {
		return
	}
	old, fenced := s.start(1, "a")
	for pos := uint64(1); pos <= 4; pos++ {
		write(t, old, "lane", pos)
	}
	old.Done(ctx(t), s.read(old))
	must(t, old.Trim(ctx(t)))
	second, third := s.read(old), s.read(old) // and now it is frozen
	taken, _ := s.start(2, "b")
	for _, was := range []*buffer.Delivery{second, third, nil} {
		d := s.read(taken)
		if was != nil && (d.Number != was.Number || d.Seq != was.Seq) {
			t.Errorf("block %d has the number %d for one owner, block %d has %d for the next", was.Seq, was.Number, d.Seq, d.Number)
		}
		if was != third {
			taken.Done(ctx(t), d)
		}
	}
	must(t, taken.Trim(ctx(t)))
	old.Done(ctx(t), second)
	old.Done(ctx(t), third) // the new owner has not done it: it must neither count as done nor be removed
	is(t, "trim of an owner that was replaced", old.Trim(ctx(t)), shard.ErrFenced)
	select {
	case err := <-fenced:
		is(t, "the error that it gets", err, shard.ErrFenced)
	default:
		t.Error("the owner does not learn that it was replaced")
	}
	is(t, "its second trim", old.Trim(ctx(t)), shard.ErrFenced)
	last, _ := s.start(3, "c")
	d := s.read(last)
	if d.Seq != third.Seq {
		t.Errorf("the next owner reads block %d, want %d, which only an owner without the state had finished", d.Seq, third.Seq)
	}
	last.Done(ctx(t), d)
	s.nothing(last)
	must(t, last.Trim(ctx(t)))
	write(t, last, "lane", 5)
	if _, err := old.Read(ctx(t)); err != nil { // unless it has read ahead: it misses what was removed since, and that is no damage
		is(t, "read of an owner that was replaced", err, shard.ErrFenced)
	}
	_ = old.Close(ctx(t)) // it cannot save
	beside, err := open(t, h, pipeline("p")).OpenPartition(ctx(t), "cat", 0, isb.Settings{})
	must(t, err)
	if note, err := beside.LoadDamage(ctx(t)); err != nil || len(note) > 0 {
		t.Errorf("damage is recorded: %s, %v", note, err)
	}
	_, err = s.opener().Shard(ctx(t), "cat", 0, 0, shard.Ownership{Shard: "p0", Epoch: 2, Incarnation: "b2"}, nil, buffer.Options{}, noLoss)
	is(t, "a start with an epoch that was", err, shard.ErrFenced)
	must(t, last.Close(ctx(t)))
}

// aloneAndShared: a buffer goes from a version that saves without an owner to processes that share its vertex, to a process of the whole pipeline and back. Each begins
// where the last one was, and none that was replaced saves any more.
func aloneAndShared(t *testing.T, h Harness) {
	s, ok := shares(t, h)
	if !ok {
		return
	}
	plain := openPartition(t, open(t, h, pipeline("p")), "cat")
	for pos := uint64(1); pos <= 6; pos++ {
		write(t, plain, "lane", pos)
	}
	plain.Done(ctx(t), s.read(plain))
	must(t, plain.Close(ctx(t)))
	next := uint64(2)
	var replaced []*buffer.Partition
	var unfinished []*buffer.Delivery
	for _, begin := range []func() *buffer.Partition{
		func() *buffer.Partition { p, _ := s.start(1, "a"); return p },
		s.alone,
		s.alone,
		func() *buffer.Partition { // the epoch is above that of the lease: the member claims another one
			_, err := s.opener().Shard(ctx(t), "cat", 0, 0, shard.Ownership{Shard: "p0", Epoch: 2, Incarnation: "b"}, nil, buffer.Options{}, noLoss)
			fenced, ok := errors.AsType[*shard.FencedError](err)
			if !ok {
				t.Fatalf("a start with a low epoch: %v", err)
			}
			p, _ := s.start(fenced.Seen+1, "b")
			return p
		},
	} {
		p := begin()
		d := s.read(p)
		if d.Seq != next {
			t.Fatalf("block %d is read, want %d", d.Seq, next)
		}
		next++
		p.Done(ctx(t), d)
		must(t, p.Trim(ctx(t)))
		replaced, unfinished = append(replaced, p), append(unfinished, s.read(p))
	}
	for i, p := range replaced[:len(replaced)-1] {
		p.Done(ctx(t), unfinished[i])
		is(t, "trim of a process that was replaced", p.Trim(ctx(t)), shard.ErrFenced)
	}
	// Writers and lists elsewhere read the state with its owner.
	w, err := s.opener().Writer(ctx(t), "cat", 0, buffer.Options{}, func(error) func(error) { return func(error) {} })
	must(t, err)
	store := open(t, h, pipeline("p"))
	name, err := store.Stream(ctx(t), "cat", 0)
	must(t, err)
	c, err := isb.Inspect(context.Background(), store, name)
	must(t, err)
	if want := int(6 - (next - 1)); c.Messages != want {
		t.Errorf("%d messages are counted, want %d", c.Messages, want)
	}
	must(t, w.Close())
	n, err := isb.Drop(ctx(t), store, name)
	must(t, err)
	if n != c.Messages {
		t.Errorf("%d messages are dropped, want %d", n, c.Messages)
	}
	after := s.alone()
	s.nothing(after)
	must(t, after.Close(ctx(t)))
}
