package redisbuffer

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/redislink"
)

// Read-ahead: the most entries of one request. It falls when they are large.
const (
	aheadEntries = 32
	aheadFew     = 4
	aheadBytes   = 4 << 20
)

// blockFor is how long one request waits for entries, verifyEvery how often a cursor that gets none looks whether the log is what it was.
const (
	blockFor    = time.Second
	verifyEvery = 3 * time.Second
)

// cursor is where the reader is. Its fields are guarded by the driver's mu.
type cursor struct {
	next       uint64         // the sequence that Next gives next
	lastStored time.Time      // when the entry before next was stored; zero if none was given
	ahead      []buffer.Entry // got and not given
	fetch      chan fetched   // a request on its way, whose result has room in it; nil if there is none
	count      int64          // entries of the next request
	verified   time.Time      // when the log was last what it was; zero after an error
	gone       chan struct{}  // closed with the driver; nil before Resume
}

// fetched is what a request for entries gave.
type fetched struct {
	entries []redis.XMessage
	err     error
}

func (c *cursor) close() {
	if c.gone != nil {
		close(c.gone)
		c.gone = nil
	}
}

// Reset implements buffer.Cursor. The cursor is a number in this process, which each request names.
func (d *driver) Reset() {}

// Resume implements buffer.Cursor.
func (d *driver) Resume(ctx context.Context, after uint64) error {
	if _, err := d.claim(ctx); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return buffer.ErrClosed
	}
	d.cursor.close()
	d.cursor = cursor{next: after + 1, count: aheadEntries, gone: make(chan struct{})} // a request on its way is forgotten
	return nil
}

// Next implements buffer.Cursor.
func (d *driver) Next(ctx context.Context) (buffer.Entry, error) {
	for {
		if err := d.alive(); err != nil {
			return buffer.Entry{}, err
		}
		if e, ok := d.given(); ok {
			return e, nil
		}
		if err := d.verify(ctx); err != nil {
			return buffer.Entry{}, err
		}
		d.mu.Lock()
		waiting, gone := d.request(), d.cursor.gone
		d.mu.Unlock()
		select {
		case got := <-waiting:
			if err := d.take(waiting, got); err != nil {
				return buffer.Entry{}, err
			}
		case <-gone:
		case <-ctx.Done():
			return buffer.Entry{}, ctx.Err()
		}
	}
}

// given returns the next entry of those that are here.
func (d *driver) given() (e buffer.Entry, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := &d.cursor
	if len(c.ahead) == 0 {
		return e, false
	}
	e, c.ahead = c.ahead[0], c.ahead[1:]
	c.next, c.lastStored = e.Seq+1, e.Stored
	return e, true
}

// request returns where the result of the request on its way will be, and makes one if there is none. mu is held.
func (d *driver) request() chan fetched {
	c := &d.cursor
	if c.fetch == nil {
		c.fetch = d.read(d.keys.log, entryID(c.next-1), c.count)
	}
	return c.fetch
}

// read waits for entries of a stream after an id, for at most blockFor. The client library does not end a request when a context does, so the caller waits
// for the result and not for the request.
func (d *driver) read(key, after string, count int64) chan fetched {
	result := make(chan fetched, 1)
	d.link.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), blockFor+requestTimeout)
		defer cancel()
		streams, err := d.link.Client.XRead(ctx, &redis.XReadArgs{Streams: []string{key, after}, Count: count, Block: blockFor}).Result()
		got := fetched{err: err}
		if errors.Is(err, redis.Nil) {
			got.err = nil
		}
		for _, s := range streams {
			got.entries = append(got.entries, s.Messages...)
		}
		result <- got
	})
	return result
}

// take takes up the result of a request.
func (d *driver) take(from chan fetched, got fetched) error {
	err := d.classify(got.err)
	d.mu.Lock()
	defer d.mu.Unlock()
	c := &d.cursor
	if c.fetch != from {
		return nil // the cursor was put elsewhere
	}
	c.fetch = nil
	if err != nil {
		c.verified = time.Time{}
		return err
	}
	size := 0
	c.ahead = c.ahead[:0]
	for _, m := range got.entries {
		e, err := entryOf(m)
		if err != nil {
			return err
		}
		size += len(e.Data)
		c.ahead = append(c.ahead, e)
	}
	c.count = aheadEntries
	if size > aheadBytes {
		c.count = aheadFew
	}
	if len(got.entries) > 0 {
		c.verified = time.Now()
	}
	return nil
}

// verify looks whether the log is the one that was read, after an error and when nothing has come for some time: the server may have been restored from a copy, or
// a replica that lacks the end may have taken over.
func (d *driver) verify(ctx context.Context) error {
	d.mu.Lock()
	last, stored, due := d.cursor.next-1, d.cursor.lastStored, time.Since(d.cursor.verified) > verifyEvery
	d.mu.Unlock()
	if !due {
		return nil
	}
	bounds, header, err := d.bounds(ctx, last)
	if err != nil {
		return err
	}
	if bounds.Last < last {
		return fmt.Errorf("%w: block %d was read, and the last one is now %d", buffer.ErrLostEnd, last, bounds.Last)
	}
	var now buffer.Entry
	parseHeader(header, &now)
	if header != "" && !stored.IsZero() && !now.Stored.Equal(stored) {
		return fmt.Errorf("%w: block %d was read, and another one was stored there at %v", buffer.ErrLostEnd, last, now.Stored)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cursor.verified = time.Now()
	return nil
}

// bounds asks how far the log reaches, and for the header of an entry.
func (d *driver) bounds(ctx context.Context, seq uint64) (b buffer.Bounds, header string, err error) {
	answer, err := d.run(ctx, boundsScript, []string{d.keys.log, d.keys.meta}, d.incarnation, strconv.FormatUint(seq, 10))
	if err != nil {
		return b, "", err
	}
	said, ok := answer.([]any)
	if !ok || len(said) < 2 {
		return b, "", fmt.Errorf("unexpected answer %v", answer)
	}
	if b.Last, err = sequence(fmt.Sprint(said[1])); err != nil {
		return b, "", err
	}
	b.First = b.Last + 1
	if first := fmt.Sprint(said[0]); first != "" {
		if b.First, err = sequence(first); err != nil {
			return b, "", err
		}
	}
	if len(said) > 2 {
		header, _ = said[2].(string)
	}
	return b, header, nil
}

// Bounds implements buffer.Ends.
func (d *driver) Bounds(ctx context.Context) (buffer.Bounds, error) {
	b, _, err := d.bounds(ctx, 0)
	return b, err
}

func entryID(seq uint64) string { return "0-" + strconv.FormatUint(seq, 10) }

// sequence is that of an id. An id with a time is of an entry that somebody else added.
func sequence(id string) (uint64, error) {
	rest, ok := strings.CutPrefix(id, "0-")
	seq, err := strconv.ParseUint(rest, 10, 64)
	if !ok || err != nil {
		return 0, fmt.Errorf("%w: the log has an entry with id %s, which Levada did not write: remove it with XDEL, and set the last id back with XSETID", redislink.ErrUnfit, id)
	}
	return seq, nil
}

// entryOf is a stored entry. One that is malformed has no data, which the reader takes for damage.
func entryOf(m redis.XMessage) (buffer.Entry, error) {
	seq, err := sequence(m.ID)
	e := buffer.Entry{Seq: seq}
	if h, ok := m.Values["h"].(string); ok {
		parseHeader(h, &e)
	}
	if data, ok := m.Values["d"].(string); ok {
		e.Data = []byte(data)
	}
	return e, err
}

// rangeEntries is how many entries Scan and Find ask for at once.
const rangeEntries = 16

// Scan implements buffer.Log.
func (d *driver) Scan(ctx context.Context, seq uint64, visit func(buffer.Entry) error) error {
	bounds, err := d.Bounds(ctx)
	if err != nil {
		return err
	}
	return d.visit(ctx, max(seq, bounds.First), bounds.Last, visit)
}

// Find implements buffer.Log. A replica has nothing that its master lacks for long: it takes over what the master has.
func (d *driver) Find(ctx context.Context, lo, hi uint64, good func(buffer.Entry) bool) (found []buffer.Entry, err error) {
	err = d.visit(ctx, lo, hi, func(e buffer.Entry) error {
		if good(e) {
			found = append(found, e)
		}
		return nil
	})
	return found, err
}

// visit reads entries from lo to hi.
func (d *driver) visit(ctx context.Context, lo, hi uint64, visit func(buffer.Entry) error) error {
	for lo <= hi {
		entries, err := d.rangeOf(ctx, lo, hi)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := visit(e); err != nil {
				return err
			}
			lo = e.Seq + 1
		}
		if len(entries) < rangeEntries {
			return nil
		}
	}
	return nil
}

func (d *driver) rangeOf(ctx context.Context, lo, hi uint64) ([]buffer.Entry, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	messages, err := d.link.Client.XRangeN(ctx, d.keys.log, entryID(lo), entryID(hi), rangeEntries).Result()
	if err = d.classify(err); err != nil {
		return nil, err
	}
	entries := make([]buffer.Entry, len(messages))
	for i, m := range messages {
		if entries[i], err = entryOf(m); err != nil {
			return nil, err
		}
	}
	return entries, nil
}
