package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sort"
)

// Slice makes a Source of records that are in memory, in the order of their keys. Only Key, Value and Bad are looked at: the
// stream numbers the records itself. The records must not be changed afterwards.
func Slice(records ...Record) Source {
	return SliceOf(records, func(r Record) []byte { return r.Key }, func(dst []byte, r Record) ([]byte, error) {
		if r.Bad != "" {
			return dst, Skip(errors.New(r.Bad))
		}
		return append(dst, r.Value...), nil
	})
}

// SliceOf makes a Source of items that are in memory, in the order of their keys. value appends an item's value to dst; what
// it returns, and its panics, mean what those of [Cursor].Value do. key and value may be called concurrently, and must
// give the same for the same item each time; the items must not be changed afterwards.
//
// A key that is empty, or not greater than the one before, is found at once, and each Open then returns an ErrOrder that names it.
func SliceOf[T any](items []T, key func(item T) []byte, value func(dst []byte, item T) ([]byte, error)) Source {
	return &sliceSource[T]{items: items, key: key, value: value, err: checkOrder(items, key)}
}

func checkOrder[T any](items []T, key func(T) []byte) error {
	var last []byte
	for i, item := range items {
		k := key(item)
		if len(k) == 0 {
			return Halt(fmt.Errorf("%w: item %d has an empty key, which would be the position before the first record", ErrOrder, i))
		}
		if i > 0 && bytes.Compare(k, last) <= 0 {
			return Halt(fmt.Errorf("%w: item %d has key %q, and item %d before it has %q; sort the items by key, and make keys unique", ErrOrder, i, k, i-1, last))
		}
		last = append(last[:0], k...) // key may use the same memory again
	}
	return nil
}

type sliceSource[T any] struct {
	items []T
	key   func(T) []byte
	value func([]byte, T) ([]byte, error)
	err   error // why the items cannot be served
}

func (s *sliceSource[T]) Open(_ context.Context, q Query) (Cursor, error) {
	if s.err != nil {
		return nil, s.err
	}
	next := 0
	if len(q.After) > 0 {
		next = sort.Search(len(s.items), func(i int) bool { return bytes.Compare(s.key(s.items[i]), q.After) > 0 })
	}
	return &sliceCursor[T]{s: s, next: next}, nil
}

// Size implements [Sizer].
func (s *sliceSource[T]) Size(context.Context, Query) (uint64, error) {
	return uint64(len(s.items)), nil
}

type sliceCursor[T any] struct {
	s    *sliceSource[T]
	next int
}

func (c *sliceCursor[T]) Next(ctx context.Context) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	if c.next == len(c.s.items) {
		return nil, io.EOF
	}
	c.next++
	return c.s.key(c.s.items[c.next-1]), nil
}

func (c *sliceCursor[T]) Value(dst []byte) ([]byte, error) {
	return c.s.value(dst, c.s.items[c.next-1])
}

func (c *sliceCursor[T]) Close() error { return nil }

// Func makes a Source of a function that returns the records after q.After as an iterator. Of the records, Key, Value and
// Bad are looked at, and they need to stay valid only until the iterator goes on.
//
// The iterator starts with the first record that is asked for, and says what it cannot do by yielding an error, which means
// what it would mean from [Cursor].Next; it is stopped after the first one. An error marked with [Skip] that comes with a key
// costs that record only. A panic in the iterator ends the stream, and nothing after that item is ever sent: values that may panic belong into
// the value function of [FuncOf].
//
// ctx ends when the stream is not read any more, and the iterator must return then. When it returns although ctx has ended, that is
// not taken for the stream's end.
func Func(open func(ctx context.Context, q Query) iter.Seq2[Record, error]) Source {
	return funcSource(open)
}

type funcSource func(ctx context.Context, q Query) iter.Seq2[Record, error]

func (open funcSource) Open(ctx context.Context, q Query) (Cursor, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	// The cursor lives longer than the call, so its context is ended by Next's, and by Close.
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	next, stop := iter.Pull2(open(ctx, q))
	return &funcCursor{ctx: ctx, cancel: cancel, next: next, stop: stop, unwatch: func() bool { return true }}, nil
}

type funcCursor struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	next   func() (Record, error, bool)
	stop   func()

	watched <-chan struct{} // Done of the context that ends ctx
	unwatch func() bool
	record  Record
	bad     error // why record cannot be made
	err     error // returned by Next from now on
}

func (c *funcCursor) Next(ctx context.Context) ([]byte, error) {
	if c.err != nil {
		return nil, c.err
	}
	c.watch(ctx)
	record, err, ok := c.next()
	switch {
	case c.ctx.Err() != nil:
		c.err = context.Cause(c.ctx)
	case !ok:
		c.err = io.EOF
	case err != nil && VerdictOf(err) == VerdictSkip && len(record.Key) > 0:
		c.record, c.bad = record, err
		return record.Key, nil
	case err != nil:
		c.err = err
	default:
		c.record, c.bad = record, nil
		return record.Key, nil
	}
	return nil, c.err
}

// watch makes the end of ctx end the iterator's context. Most callers pass the same context each time.
func (c *funcCursor) watch(ctx context.Context) {
	if ctx.Done() == c.watched {
		return
	}
	c.unwatch()
	c.watched = ctx.Done()
	c.unwatch = context.AfterFunc(ctx, func() { c.cancel(context.Cause(ctx)) })
}

func (c *funcCursor) Value(dst []byte) ([]byte, error) {
	switch {
	case c.bad != nil:
		return dst, c.bad
	case c.record.Bad != "":
		return dst, Skip(errors.New(c.record.Bad))
	default:
		return append(dst, c.record.Value...), nil
	}
}

func (c *funcCursor) Close() error {
	c.unwatch()
	c.cancel(context.Canceled)
	c.stop()
	return nil
}
