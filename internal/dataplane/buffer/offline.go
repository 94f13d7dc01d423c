package buffer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/levada-io/levada/internal/dataplane/identity"
)

// Contents are what a partition holds that is not known to be done.
type Contents struct {
	// Messages may count one twice that was written again after a crash: the reader drops it.
	Messages, Blocks int
	// Damaged are those of Blocks whose messages could not be counted.
	Damaged int
	Bytes   int64
	// Oldest is when the first of them was stored; zero if there is none.
	Oldest time.Time
	// Written reports whether anything was ever stored.
	Written bool
	// Reached is the highest position that was stored of each lane.
	Reached map[string]uint64
	// ByID reports whether lanes without positions are among them.
	ByID bool
	// Shards are what each shard holds, if there are several: this is the sum then.
	Shards []Contents
}

// Inspect says what a partition holds. It touches no reader: it may be used while a process runs, and then is as of what that saved last.
func Inspect(ctx context.Context, driver ReaderDriver) (c Contents, err error) {
	n := ShardsOf(driver)
	if n == 1 {
		return inspect(ctx, driver)
	}
	shards := make([]Driver, n)
	for i := range shards {
		shards[i] = driver.(Sharded).Shard(i) // it has several
		defer func() { err = errors.Join(err, shards[i].Close()) }()
	}
	for i, shard := range shards {
		one, err := inspect(ctx, shard)
		if err != nil {
			return Contents{}, fmt.Errorf("shard %d: %w", i, err)
		}
		c.add(one)
		c.Shards = append(c.Shards, one)
	}
	return c, nil
}

// add adds what another shard holds.
func (c *Contents) add(o Contents) {
	c.Messages, c.Blocks, c.Bytes, c.Damaged = c.Messages+o.Messages, c.Blocks+o.Blocks, c.Bytes+o.Bytes, c.Damaged+o.Damaged
	if c.Oldest.IsZero() || !o.Oldest.IsZero() && o.Oldest.Before(c.Oldest) {
		c.Oldest = o.Oldest
	}
	c.Written, c.ByID = c.Written || o.Written, c.ByID || o.ByID
	if c.Reached == nil {
		c.Reached = map[string]uint64{}
	}
	for lane, at := range o.Reached {
		c.Reached[lane] = max(c.Reached[lane], at)
	}
}

func inspect(ctx context.Context, driver ReaderDriver) (Contents, error) {
	s, err := takeStock(ctx, driver)
	if err != nil {
		return Contents{}, err
	}
	s.contents.Reached = s.seen.Reached()
	return s.contents, nil
}

// Discard drops all messages of a partition without shards, or of one shard, that are not known to be done, and returns their number. Messages that are written again are known and stay
// dropped. Nothing may read or write the partition at the same time. If it is cut short, all messages are still there.
func Discard(ctx context.Context, driver ReaderDriver) (messages int, err error) {
	s, err := takeStock(ctx, driver)
	if err != nil || s.contents.Blocks == 0 && s.last <= s.floor {
		return 0, err
	}
	// This is the moment at which they are dropped.
	state := savedState{floor: s.last, last: s.last, base: s.base, top: max(s.top, s.base+s.last), seen: s.seen.Marshal()}
	if err := driver.SaveState(ctx, state.marshal()); err != nil {
		return 0, fmt.Errorf("save state: %w", err)
	}
	shared := false
	if siblings, ok := driver.(Siblings); ok {
		needs, _ := siblings.Needs()
		shared = len(needs) > 0
	}
	if shared || s.contents.ByID {
		return s.contents.Messages, nil // their ids are read back from the blocks, which the next reader trims; so are blocks that other shards may need
	}
	return s.contents.Messages, driver.Trim(ctx, s.last+1)
}

type stock struct {
	floor, last uint64
	base, top   uint64
	seen        *identity.Seen
	contents    Contents
}

// takeStock reads the saved state and what was stored after it.
func takeStock(ctx context.Context, driver ReaderDriver) (*stock, error) {
	s := &stock{seen: identity.New(time.Minute, 1)}
	data, err := driver.LoadState(ctx)
	if err != nil {
		return nil, fmt.Errorf("load state: %w", err)
	}
	state, err := readState(data)
	if err != nil {
		return nil, err
	}
	if state == nil {
		state = &savedState{}
	} else {
		s.floor, s.base, s.top = state.floor, state.base, state.top
		if err := s.seen.Unmarshal(state.seen); err != nil {
			return nil, err
		}
	}
	bounds, err := driver.Bounds(ctx)
	if err != nil {
		return nil, err
	}
	s.last = max(bounds.Last, s.floor)
	s.contents.Written = s.last > 0
	note, err := driver.LoadDamage(ctx)
	if err != nil {
		return nil, fmt.Errorf("load record of damage: %w", err)
	}
	lost, from := loss{base: s.base}, s.floor+1
	if len(note) > 0 {
		from = bounds.First // the floor may be of entries that the store has lost, see lostend.go
	} else if bounds.Last <= s.floor {
		return s, nil
	}
	again := false // at the first entry that took the place of a lost one, and was not read
	parts := pieces{}
	log := finder{driver, retrier{logger: slog.New(slog.DiscardHandler)}}
	_, err = log.scan(ctx, Bounds{First: max(bounds.First, from), Last: bounds.Last}, func(e Entry) {
		if again = again || lost.see(e); e.Seq <= s.floor && !again {
			return
		}
		s.base = max(s.base, entryBase(e))
		if e.Foreign {
			return
		}
		b, n, err := headOf(e.Data)
		s.contents.Blocks++
		s.contents.Bytes += int64(len(e.Data))
		if s.contents.Oldest.IsZero() {
			s.contents.Oldest = e.Stored
		}
		if err != nil {
			s.contents.Damaged++
			return
		}
		if done, ok := state.progress[e.Seq]; ok && done.stored == e.Stored.UnixNano() {
			n -= done.count(n)
		}
		s.contents.Messages += n
		if isChunk(e.Data) {
			if b, _ = parts.whole(e.Data); b == nil {
				return // there is more of it
			}
		}
		if b.ByID {
			s.contents.ByID = true
			return
		}
		s.seen.Admit(b, time.Time{})
	})
	if err != nil {
		return nil, fmt.Errorf("scan: %w", err)
	}
	return s, nil
}
