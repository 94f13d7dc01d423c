package streamsink

import (
	"context"
	"fmt"
	"strconv"

	"github.com/levada-io/levada/stream"
)

// The order key of a message is its position in twenty digits, which sort as the numbers do.
const keyLength = 20

func appendKey(b []byte, pos uint64) []byte { return fmt.Appendf(b, "%0*d", keyLength, pos) }

func parseKey(key []byte) (uint64, error) {
	pos, err := strconv.ParseUint(string(key), 10, 64)
	if err != nil || len(key) != keyLength || pos == 0 {
		return 0, fmt.Errorf("%w: %q is not a position of a pipeline's stream", stream.ErrBadToken, key)
	}
	return pos, nil
}

// Generation implements stream.Generation.
func (l *log) Generation(context.Context, stream.Query) (string, error) { return l.name, nil }

// Open implements stream.Source. A reader without a position begins with the oldest message that is held.
func (l *log) Open(_ context.Context, q stream.Query) (stream.Cursor, error) {
	if len(q.Params) > 0 {
		return nil, stream.Halt(fmt.Errorf("the stream %q of a pipeline takes no query", q.Stream))
	}
	if len(q.After) == 0 {
		return &cursor{log: l, start: true}, nil
	}
	at, err := parseKey(q.After)
	if err != nil {
		return nil, err
	}
	first, last, _, _ := l.held()
	switch {
	case at > last:
		return nil, fmt.Errorf("%w: position %d was given out, and the log ends at %d: it is an older copy of itself", stream.ErrGeneration, at, last)
	case at+1 < first:
		return nil, l.gone(first, last)
	}
	return &cursor{log: l, at: at}, nil
}

func (l *log) gone(first, last uint64) error {
	gone := &stream.PositionGoneError{}
	if first <= last {
		gone.Oldest = appendKey(nil, first)
	}
	return gone
}

// cursor reads ahead in pieces, so that it holds no transaction open while it waits.
type cursor struct {
	log   *log
	at    uint64   // the message that Next moved to
	start bool     // nothing was read yet, and it begins wherever the log does
	rows  [][]byte // a piece. Invariant: rows[next] is the message at+1
	next  int      // the first of rows that was not given
	key   []byte   // valid until the next call of Next, as stream.Cursor allows
}

// A piece has at most so many messages, and ends with the one that makes it larger than pieceBytes.
const (
	pieceRows  = 500
	pieceBytes = 1 << 20
)

// Next implements stream.Cursor.
func (c *cursor) Next(ctx context.Context) ([]byte, error) {
	for c.next == len(c.rows) {
		if err := c.fill(ctx); err != nil {
			return nil, err
		}
	}
	c.next++
	c.at++
	c.key = appendKey(c.key[:0], c.at)
	return c.key, nil
}

// fill reads the next piece, or waits until there is one.
func (c *cursor) fill(ctx context.Context) error {
	first, last, _, grown := c.log.held()
	if c.start {
		c.at = first - 1
	}
	if c.at == last {
		select {
		case <-grown:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	c.rows, c.next = c.rows[:0], 0
	if err := c.read(ctx); err != nil {
		c.rows = c.rows[:0] // what was read before the error is read again
		return err
	}
	if len(c.rows) == 0 && !c.start { // all that was held is forgotten by now
		if first, last, _, _ := c.log.held(); c.at+1 < first {
			return c.log.gone(first, last)
		}
	}
	c.start = c.start && len(c.rows) == 0
	return nil
}

// read adds the rows behind at. Positions have no hole, so a missing one was removed by retention; only a cursor at its start may begin behind it.
func (c *cursor) read(ctx context.Context) error {
	rows, err := c.log.read.QueryContext(ctx, "select pos, value from log where pos > ? order by pos limit ?", int64(c.at), pieceRows)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for size := 0; size < pieceBytes && rows.Next(); {
		var pos int64
		var value []byte
		if err := rows.Scan(&pos, &value); err != nil {
			return err
		}
		if want := c.at + 1 + uint64(len(c.rows)); uint64(pos) != want {
			if !c.start || len(c.rows) > 0 {
				first, last, _, _ := c.log.held()
				return c.log.gone(first, last)
			}
			c.at = uint64(pos) - 1 // some were forgotten just now
		}
		c.rows = append(c.rows, value)
		size += len(value)
	}
	return rows.Err()
}

// Value implements stream.Cursor.
func (c *cursor) Value(dst []byte) ([]byte, error) { return append(dst, c.rows[c.next-1]...), nil }

// Close implements stream.Cursor.
func (c *cursor) Close() error { return nil }

var (
	_ stream.Source     = (*log)(nil)
	_ stream.Generation = (*log)(nil)
)
