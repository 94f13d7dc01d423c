package isbtest

import (
	"sync"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/naming"
)

// apart: owners whose names, joined, read the same, and a Pipeline and a MonoVertex of one name.
func apart(t *testing.T, h Harness) {
	owners := []naming.Owner{
		{Namespace: "a", Kind: naming.Pipeline, Name: "b-c"}, {Namespace: "a-b", Kind: naming.Pipeline, Name: "c"},
		{Namespace: "a", Kind: naming.MonoVertex, Name: "b-c"}, {Namespace: "a", Kind: naming.Pipeline, Name: "b"},
	}
	vertices := []string{"d", "d", "d", "c-d"}
	incarnations := map[string]bool{}
	for i, owner := range owners {
		store := open(t, h, owner)
		if v, _, err := store.State().Get(ctx(t), "x"); v != nil || err != nil {
			t.Errorf("%v sees the value of %q, %v", owner, v, err)
		}
		must(t, store.State().Put(ctx(t), "x", []byte(owner.String())))
		p := openPartition(t, store, vertices[i])
		write(t, p, "lane", uint64(i+1))
		must(t, p.Close(ctx(t)))
		l, err := store.DeadLetters(ctx(t))
		must(t, err)
		if ids, _, _ := page(t, l, "", 0, 10); len(ids) != 0 {
			t.Errorf("%v sees dead letters of others: %v", owner, ids)
		}
		put(t, l, vertices[i], owner.String(), []byte("x"))
		if !store.Owner().Is(owner) || store.Owner().Incarnation == "" || incarnations[store.Owner().Incarnation] {
			t.Errorf("%v has the owner %+v", owner, store.Owner())
		}
		incarnations[store.Owner().Incarnation] = true
	}
	found, err := isb.List(ctx(t), connect(t, h))
	must(t, err)
	if len(found) != len(owners) {
		t.Errorf("%d pipelines are listed, want %d", len(found), len(owners))
	}
	for _, f := range found {
		if len(f.Buffers) != 1 {
			t.Errorf("%v has the streams %v, want 1", f.Owner(), f.Buffers)
		}
	}
}

// openPartition opens both ends of the first partition of a vertex.
func openPartition(t *testing.T, store isb.Store, vertex string) *buffer.Partition {
	t.Helper()
	d, err := store.OpenPartition(ctx(t), vertex, 0, isb.Settings{})
	must(t, err)
	p, err := buffer.Open(ctx(t), d, buffer.Options{Name: vertex})
	must(t, err)
	return p
}

// incarnations: of many processes that open a new store at the same time, none has another incarnation.
func incarnations(t *testing.T, h Harness) {
	got := make([]string, 8)
	var opening sync.WaitGroup
	for i := range got {
		service := connect(t, h)
		opening.Go(func() {
			store, err := tryOpen(t, service, pipeline("p"))
			if err != nil {
				t.Error(err)
				return
			}
			got[i] = store.Owner().Incarnation
		})
	}
	opening.Wait()
	for _, incarnation := range got {
		if incarnation == "" || incarnation != got[0] {
			t.Fatalf("incarnations: %q", got)
		}
	}
}

// notCreated: two that create one stream at the same time could each remove what the other has saved, so only the process that reads it creates it.
func notCreated(t *testing.T, h Harness) {
	service := connect(t, h)
	store := openAt(t, service, pipeline("p"))
	_, err := store.AttachWriter(ctx(t), "cat", 0, isb.Settings{})
	is(t, "attach to a stream that was never created", err, buffer.ErrNotCreated)
	o := &isb.Opener{Service: service, Store: store}
	waits, opened := make(chan struct{}), make(chan error, 1)
	go func() {
		w, err := o.Writer(ctx(t), "cat", 0, buffer.Options{}, func(error) func(error) { close(waits); return func(error) {} })
		if err == nil {
			err = w.Close()
		}
		opened <- err
	}()
	select {
	case <-waits:
	case <-time.After(time.Minute):
		t.Fatal("the writer does not wait")
	}
	p := openPartition(t, open(t, h, pipeline("p")), "cat")
	must(t, <-opened)
	must(t, p.Close(ctx(t)))
}

// lost: a stream that the state says was created would come back empty, and its messages would be gone in silence.
func lost(t *testing.T, h Harness) {
	store := open(t, h, pipeline("p"))
	p := openPartition(t, store, "cat")
	write(t, p, "lane", 1)
	must(t, p.Close(ctx(t)))
	name, err := store.Stream(ctx(t), "cat", 0)
	must(t, err)
	h.Lose(t, name)
	again := open(t, h, pipeline("p"))
	for range 2 { // the first attempt must not have created it
		_, err = again.OpenPartition(ctx(t), "cat", 0, isb.Settings{})
		is(t, "open a stream that is lost", err, buffer.ErrMissing)
	}
	_, err = again.AttachWriter(ctx(t), "cat", 0, isb.Settings{})
	is(t, "attach to a stream that is lost", err, buffer.ErrMissing)
	_, err = isb.Inspect(ctx(t), again, name)
	is(t, "inspect a stream that is lost", err, buffer.ErrMissing)
	_, err = again.Describe(ctx(t), name)
	is(t, "describe a stream that is lost", err, buffer.ErrMissing)
	streams, err := again.Streams(ctx(t))
	must(t, err)
	if len(streams) != 0 {
		t.Errorf("streams that exist: %v", streams)
	}
}

// inventory: commands see what is there while nothing runs, and change only what they are asked to.
func inventory(t *testing.T, h Harness) {
	if found, err := isb.List(ctx(t), connect(t, h)); len(found) != 0 || err != nil {
		t.Errorf("a new server has %v, %v", found, err)
	}
	p := openPartition(t, open(t, h, pipeline("p")), "cat")
	for pos := range uint64(3) {
		write(t, p, "lane", pos+1)
	}
	must(t, p.Close(ctx(t)))
	found, err := isb.List(ctx(t), connect(t, h))
	must(t, err)
	if len(found) != 1 || len(found[0].Buffers) != 1 || !found[0].Owner().Is(pipeline("p")) || found[0].Record != nil {
		t.Fatalf("found: %v", found)
	}
	place, s := found[0].Place, found[0].Buffers[0]
	if s.Vertex != "cat" || s.Partition != 0 || s.Unknown {
		t.Errorf("the stream is %+v", s)
	}
	kept, err := place.Describe(ctx(t), s.Stream)
	if err != nil || kept.Replicas < 1 || kept.Kind == "" {
		t.Errorf("the stream is kept as %+v, %v", kept, err)
	}
	for range 2 {
		if c, err := isb.Inspect(ctx(t), place, s.Stream); c.Messages != 3 || err != nil {
			t.Errorf("the stream holds %+v, %v", c, err)
		}
	}
	if n, err := isb.Drop(ctx(t), place, s.Stream); n != 3 || err != nil {
		t.Errorf("%d messages dropped, %v", n, err)
	}
	if c, err := isb.Inspect(ctx(t), place, s.Stream); c.Messages != 0 || err != nil {
		t.Errorf("after the drop the stream holds %+v, %v", c, err)
	}
	must(t, place.Remove(ctx(t), s.Stream))
	_, err = place.Attach(ctx(t), s.Stream)
	is(t, "attach to a stream that was removed", err, buffer.ErrMissing)
	again := openPartition(t, open(t, h, pipeline("p")), "cat") // removed for good: it may be created again
	write(t, again, "lane", 1)
	if got := again.Pending(); got != 1 {
		t.Errorf("%d messages are pending in a new stream, want 1", got)
	}
	must(t, again.Close(ctx(t)))
}
