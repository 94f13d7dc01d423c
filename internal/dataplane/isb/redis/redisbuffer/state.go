package redisbuffer

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/redis/go-redis/v9"

	"github.com/levada-io/levada/internal/dataplane/buffer"
)

// claim makes this driver the reader of the partition, unless it is that already. It asks Config.Fence first. The error is ErrFenced once another one has a higher epoch.
func (d *driver) claim(ctx context.Context) (uint64, error) {
	d.mu.Lock()
	epoch, fenced, compares := d.epoch, d.fenced, d.compares
	d.mu.Unlock()
	if fenced != nil {
		return 0, fenced
	}
	if d.cfg.Fence != nil {
		if err := d.cfg.Fence(ctx); err != nil {
			return 0, err
		}
	}
	if epoch != 0 || compares { // a start that claims another epoch late would take the partition from its successor
		return epoch, nil
	}
	answer, err := d.run(ctx, claimScript, []string{d.keys.meta}, d.incarnation, strconv.FormatUint(d.cfg.Epoch, 10), d.reader)
	if err != nil {
		return 0, fmt.Errorf("take over the partition: %w", err)
	}
	given, ok := answer.(int64)
	if !ok || given <= 0 {
		return 0, fmt.Errorf("take over the partition: unexpected answer %v", answer)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.epoch == 0 { // otherwise another call was first
		d.epoch = uint64(given)
	}
	return d.epoch, nil
}

// SaveState implements buffer.StateStore.
func (d *driver) SaveState(ctx context.Context, state []byte) error {
	epoch, err := d.claim(ctx)
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.saves++
	number := d.saves
	d.mu.Unlock()
	_, err = d.run(ctx, saveScript, []string{d.keys.state, d.keys.meta}, d.incarnation, strconv.FormatUint(epoch, 10), strconv.FormatUint(number, 10), state, d.reader)
	return err
}

// LoadState implements buffer.StateStore and buffer.Usage.
func (d *driver) LoadState(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	entries, err := d.link.Client.XRevRangeN(ctx, d.keys.state, "+", "-", 1).Result()
	if err = d.classify(err); err != nil || len(entries) == 0 {
		return nil, err
	}
	return stateOf(entries[0]), nil
}

func stateOf(m redis.XMessage) []byte {
	s, _ := m.Values["s"].(string)
	return []byte(s)
}

// SaveDamage implements buffer.StateStore.
func (d *driver) SaveDamage(ctx context.Context, damage []byte) error {
	if _, err := d.claim(ctx); err != nil {
		return err
	}
	_, err := d.run(ctx, damageScript, []string{d.keys.meta}, d.incarnation, d.reader, damage)
	return err
}

// LoadDamage implements buffer.StateStore.
func (d *driver) LoadDamage(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	damage, err := d.link.Client.HGet(ctx, d.keys.meta, "damage").Bytes()
	if errors.Is(err, redis.Nil) {
		return nil, nil
	}
	return damage, d.classify(err)
}

// trimAtOnce is how many entries one request removes: the server does nothing else meanwhile.
const trimAtOnce = 256

// Trim implements buffer.Retention.
func (d *driver) Trim(ctx context.Context, seq uint64) error {
	if _, err := d.claim(ctx); err != nil {
		return err
	}
	bounds, err := d.Bounds(ctx)
	if err != nil {
		return err
	}
	if bounds.Last+1 < seq {
		// What was stored there is lost; what is stored there next has not been read.
		return fmt.Errorf("nothing removed before block %d: the last one there is %d", seq, bounds.Last)
	}
	for {
		more, err := d.run(ctx, trimScript, []string{d.keys.log, d.keys.heads, d.keys.meta}, d.incarnation, d.reader, strconv.FormatUint(seq, 10), trimAtOnce)
		if err != nil {
			return err
		}
		if n, _ := more.(int64); n == 0 {
			return nil
		}
	}
}

// Follow implements buffer.Usage: it reads the stream without data.
func (d *driver) Follow(ctx context.Context, seq uint64, stored func(uint64, int)) error {
	return d.watch(ctx, d.keys.heads, entryID(seq), func(m redis.XMessage) error {
		n, err := sequence(m.ID)
		if err != nil {
			return err
		}
		text, _ := m.Values["m"].(string)
		messages, _ := strconv.Atoi(text) // 0 if it makes no sense; the reader counts what it reads
		stored(n, messages)
		return nil
	})
}

// WatchState implements buffer.Usage.
func (d *driver) WatchState(ctx context.Context, changed func([]byte)) error {
	return d.watch(ctx, d.keys.state, "0", func(m redis.XMessage) error {
		changed(stateOf(m))
		return nil
	})
}

// watchEntries is how many small entries one request takes.
const watchEntries = 512

// watch calls visit for each entry of a stream after an id, also for those that are added, until ctx ends.
func (d *driver) watch(ctx context.Context, key, after string, visit func(redis.XMessage) error) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		d.mu.Lock()
		closed := d.closed
		d.mu.Unlock()
		if closed {
			return buffer.ErrClosed
		}
		select {
		case got := <-d.read(key, after, watchEntries):
			if err := d.classify(got.err); err != nil {
				return err
			}
			for _, m := range got.entries {
				if err := visit(m); err != nil {
					return err
				}
				after = m.ID
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
