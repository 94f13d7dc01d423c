package demo

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/streamtable"
	"github.com/levada-io/levada/stream"
)

// userTable is the table that the producing service has: each user follows from its number.
type userTable struct {
	count int
	notes map[uint64]string // what is wrong, by number
}

func parseUsers(count int, bad []string) (*userTable, error) {
	u := &userTable{count: count, notes: map[uint64]string{}}
	for _, b := range bad {
		text, note, ok := strings.Cut(b, "=")
		id, err := strconv.ParseUint(text, 10, 63)
		if !ok || err != nil {
			return nil, commandline.Usagef("--bad: expected NUMBER=NOTE, not %q", b)
		}
		u.notes[id] = note
	}
	return u, nil
}

func (u *userTable) key(dst []byte, id uint64) []byte { return binary.BigEndian.AppendUint64(dst, id) }

func (u *userTable) value(dst []byte, id uint64) []byte {
	dst = fmt.Appendf(dst, `{"id":%d,"name":"User %d","email":"user%d@example.org","balance":%d`, id, id, id, id*7919%100000)
	if note := u.notes[id]; note != "" {
		dst = fmt.Appendf(dst, `,"note":%q`, note)
	}
	return append(dst, '}')
}

// sums are what a reader of the whole table must come to.
func (u *userTable) sums() (s streamtable.Sums) {
	var key, value []byte
	for id := uint64(1); id <= uint64(u.count); id++ {
		key, value = u.key(key[:0], id), u.value(value[:0], id)
		s.Add(stream.Record{Seq: id, Key: key, Value: value})
	}
	return s
}

// pacedUsers serves the table slowly enough to watch.
type pacedUsers struct {
	users *userTable
	rate  int // records per second; 0: as fast as it goes
}

// Open implements stream.Source.
func (p *pacedUsers) Open(_ context.Context, q stream.Query) (stream.Cursor, error) {
	c := &pacedCursor{pacedUsers: p, begun: time.Now()}
	if len(q.After) == 8 {
		c.id = binary.BigEndian.Uint64(q.After)
	}
	return c, nil
}

// Size implements stream.Sizer.
func (p *pacedUsers) Size(context.Context, stream.Query) (uint64, error) {
	return uint64(p.users.count), nil
}

type pacedCursor struct {
	*pacedUsers
	id    uint64
	begun time.Time
	given int
	buf   []byte
}

// Next implements stream.Cursor.
func (c *pacedCursor) Next(ctx context.Context) ([]byte, error) {
	if c.id >= uint64(c.users.count) {
		return nil, io.EOF
	}
	// In steps of a fiftieth of a second, so that batches stay batches.
	if step := max(c.rate/50, 1); c.rate > 0 && c.given%step == 0 {
		if ahead := time.Duration(c.given)*time.Second/time.Duration(c.rate) - time.Since(c.begun); ahead > 0 {
			select {
			case <-time.After(ahead):
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		} else { // what was held up is not made up for, or there would be nothing to watch
			c.begun, c.given = time.Now(), 0
		}
	}
	c.given++
	c.id++
	c.buf = c.users.key(c.buf[:0], c.id)
	return c.buf, nil
}

// Value implements stream.Cursor.
func (c *pacedCursor) Value(dst []byte) ([]byte, error) { return c.users.value(dst, c.id), nil }

// Close implements stream.Cursor.
func (c *pacedCursor) Close() error { return nil }
