package stream

import (
	"context"
	"iter"
)

// FuncOf makes a Source of a function that returns the items after q.After as an iterator, as [Func] does of records. The value of an item is
// made outside of the iterator, as in [SliceOf]: a panic in it, or an error marked with [Skip], costs that record only, and the stream goes
// on with the next. So an iterator that fetches rows or objects belongs here, and what decodes or computes belongs into value.
//
// key returns the item's key; a panic in it, or in the iterator, ends the stream, since nothing is known about the item then.
func FuncOf[T any](open func(ctx context.Context, q Query) iter.Seq2[T, error], key func(item T) []byte, value func(dst []byte, item T) ([]byte, error)) Source {
	return &funcOfSource[T]{open, key, value}
}

type funcOfSource[T any] struct {
	open  func(ctx context.Context, q Query) iter.Seq2[T, error]
	key   func(T) []byte
	value func([]byte, T) ([]byte, error)
}

func (s *funcOfSource[T]) Open(ctx context.Context, q Query) (Cursor, error) {
	c := &funcOfCursor[T]{s: s}
	inner, err := Func(func(ctx context.Context, q Query) iter.Seq2[Record, error] {
		return func(yield func(Record, error) bool) {
			for item, err := range s.open(ctx, q) {
				r := Record{}
				if err == nil {
					c.item = item
					r.Key = s.key(item)
				}
				if !yield(r, err) {
					return
				}
			}
		}
	}).Open(ctx, q)
	c.Cursor = inner
	return c, err
}

type funcOfCursor[T any] struct {
	Cursor
	s    *funcOfSource[T]
	item T // that Next has moved to
}

func (c *funcOfCursor[T]) Value(dst []byte) ([]byte, error) { return c.s.value(dst, c.item) }
