package isbtest

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/flow"
)

func openLetters(t *testing.T, h Harness, owner naming.Owner) *deadletter.Store {
	t.Helper()
	l, err := open(t, h, owner).DeadLetters(ctx(t))
	must(t, err)
	return l
}

func put(t *testing.T, s *deadletter.Store, vertex, id string, value []byte) {
	t.Helper()
	m := &flow.Message{ID: id, Pos: 7, Value: value, Keys: []string{"k", "ü"}, EventTime: 42}
	must(t, s.Put(ctx(t), vertex, m, &deadletter.Failure{Reason: deadletter.Error, Error: "no\nway", Attempts: 3}))
}

func page(t *testing.T, s *deadletter.Store, vertex string, after uint64, limit int) (ids []string, names []string, next uint64) {
	t.Helper()
	letters, next, err := s.Page(ctx(t), vertex, after, limit)
	must(t, err)
	for i := range letters {
		ids, names = append(ids, letters[i].ID), append(names, letters[i].Name)
	}
	return ids, names, next
}

// listed waits until a letter is the last of the list, which may come from a replica that lags.
func listed(t *testing.T, s *deadletter.Store, last string) {
	t.Helper()
	for ctx := ctx(t); ; {
		ids, _, _ := page(t, s, "", 0, 10)
		if len(ids) > 0 && ids[len(ids)-1] == last {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("letter %s is not listed: %v", last, ids)
		}
	}
}

// letters: a letter comes back whole, also one that is larger than any value; to put it again changes nothing, and what is removed is gone.
func letters(t *testing.T, h Harness) {
	store := open(t, h, pipeline("p"))
	s, err := store.DeadLetters(ctx(t))
	must(t, err)
	large := bytes.Repeat([]byte("0123456789abcdef"), store.State().MaxValue()/8)
	put(t, s, "v", "in/1", []byte("small"))
	put(t, s, "v", "in/2", large)
	again := openLetters(t, h, pipeline("p"))
	listed(t, again, "in/2")
	_, names, _ := page(t, again, "", 0, 10)
	if len(names) != 2 {
		t.Fatalf("%d letters, want 2", len(names))
	}
	for i, value := range [][]byte{[]byte("small"), large} {
		l, err := again.Get(ctx(t), names[i])
		must(t, err)
		if !bytes.Equal(l.Message.Value, value) || l.Message.EventTime != 42 || l.Failure.Error != "no\nway" || l.Pipeline != "p" || l.Vertex != "v" || len(l.Message.Keys) != 2 {
			t.Errorf("letter %d comes back as %+v with %d bytes", i, l.Failure, len(l.Message.Value))
		}
		buried := l.Buried
		put(t, again, "v", l.ID, []byte("other"))
		if l, err = s.Get(ctx(t), names[i]); err != nil || !l.Buried.Equal(buried) || !bytes.Equal(l.Message.Value, value) {
			t.Errorf("letter %d was replaced: %v", i, err)
		}
	}
	for _, name := range names {
		must(t, again.Drop(ctx(t), name))
		is(t, "drop what is gone", s.Drop(ctx(t), name), deadletter.ErrNotFound)
		_, err := s.Get(ctx(t), name)
		is(t, "get what is gone", err, deadletter.ErrNotFound)
	}
	put(t, s, "v", "in/2", large) // one that was dropped is a new letter
	listed(t, s, "in/2")
	if _, names, _ := page(t, s, "", 0, 10); len(names) != 1 {
		t.Errorf("%d letters after one was put again, want 1", len(names))
	}
}

// letterPages: in the order of storing, by vertex, with letters removed and added between two pages.
func letterPages(t *testing.T, h Harness) {
	s := openLetters(t, h, pipeline("p"))
	if ids, _, next := page(t, s, "", 0, 10); len(ids) != 0 || next != 0 {
		t.Errorf("a list of none: %v, next %d", ids, next)
	}
	for i := range 6 {
		put(t, s, []string{"a", "a-b"}[i%2], fmt.Sprint(i), []byte("x"))
	}
	listed(t, s, "5")
	first, names, next := page(t, s, "", 0, 3)
	if fmt.Sprint(first) != "[0 1 2]" || next == 0 {
		t.Fatalf("the first page: %v, next %d", first, next)
	}
	must(t, s.Drop(ctx(t), names[2])) // the one at the cursor
	put(t, s, "a", "6", []byte("x"))
	listed(t, s, "6")
	if rest, _, last := page(t, s, "", next, 10); fmt.Sprint(rest) != "[3 4 5 6]" || last != 0 {
		t.Errorf("the second page: %v, next %d", rest, last)
	}
	if ids, _, _ := page(t, s, "a", 0, 10); fmt.Sprint(ids) != "[0 4 6]" {
		t.Errorf("letters of vertex a: %v", ids)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err := s.Page(cancelled, "", 0, 10)
	is(t, "a list that is interrupted", err, context.Canceled)
}

// replay: from a process that runs nothing, into the buffer of a vertex if it has one.
func replay(t *testing.T, h Harness) {
	store := open(t, h, pipeline("p"))
	l, err := store.DeadLetters(ctx(t))
	must(t, err)
	put(t, l, "cat", "in/1", []byte("x"))
	d, err := store.OpenPartition(ctx(t), "cat", 0, isb.Settings{})
	must(t, err)
	p, err := buffer.Open(ctx(t), d, buffer.Options{Name: "cat"})
	must(t, err)
	defer func() { must(t, p.Close(ctx(t))) }()
	elsewhere := connect(t, h)
	all, err := elsewhere.DeadLetters(ctx(t))
	must(t, err)
	if len(all) != 1 || !all[0].Owner.Is(pipeline("p")) {
		t.Fatalf("dead letters of %v", all)
	}
	none, err := elsewhere.AttachVertex(ctx(t), all[0], "in")
	must(t, err)
	if none != nil {
		t.Error("a source has a buffer")
	}
	writer, err := elsewhere.AttachVertex(ctx(t), all[0], "cat")
	must(t, err)
	w, err := buffer.OpenWriter(ctx(t), writer, buffer.Options{Name: "cat"})
	must(t, err)
	write(t, w, "again", 1)
	must(t, w.Close())
	got, err := p.Read(ctx(t))
	must(t, err)
	if len(got.Block.Messages) != 1 || got.Block.Lane != "again" {
		t.Errorf("the reader gets %d messages of lane %s", len(got.Block.Messages), got.Block.Lane)
	}
	p.Done(ctx(t), got)
}

// write writes one message.
func write(t *testing.T, w interface {
	Write(ctx context.Context, h *flow.Block, e *flow.Encoder) (*buffer.Write, error)
}, lane string, pos uint64) {
	t.Helper()
	var e flow.Encoder
	e.Reset(pos)
	e.Append(&flow.Message{ID: fmt.Sprintf("%s/%d", lane, pos), Pos: pos, Value: []byte("x")})
	written, err := w.Write(ctx(t), &flow.Block{Lane: lane, Lo: pos, Hi: pos}, &e)
	must(t, err)
	must(t, written.Wait(ctx(t)))
}
