package streamsink

import (
	"context"
	"time"
)

// retain forgets what is above MaxBytes or older than MaxAge, until ctx ends.
func (l *log) retain(ctx context.Context) {
	if l.cfg.MaxBytes == 0 && l.cfg.MaxAge == 0 {
		return
	}
	every := time.Minute
	if l.cfg.MaxAge > 0 {
		every = min(every, max(l.cfg.MaxAge/10, 10*time.Millisecond))
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		for more := true; more; {
			var err error
			if more, err = l.trim(ctx); err != nil && ctx.Err() == nil {
				l.cfg.Logger.Warn("old messages of the stream are not removed; it is tried again", "stream", l.cfg.Name, "error", err)
			}
		}
		select {
		case <-tick.C:
		case <-l.due:
		case <-ctx.Done():
			return
		}
	}
}

// trimChunk is how many messages are removed in one transaction, for which writers wait.
const trimChunk = 5000

// trim removes some of the oldest messages if that is due. It reports whether there may be more.
func (l *log) trim(ctx context.Context) (more bool, err error) {
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return false, nil
	}
	defer func() { <-l.turn }()
	if l.closed || l.broken {
		return false, nil // the next write finds out what there is
	}
	first, last, size, _ := l.held()
	to, left, err := l.cut(ctx, first, last, size)
	if err != nil || to < first {
		return false, err
	}
	l.broken = true // until it is known what was committed
	tx, err := l.write.BeginTx(ctx, nil)
	if err != nil {
		return false, err
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(ctx, "delete from log where pos <= ?", int64(to)); err != nil {
		return false, err
	}
	if _, err := tx.ExecContext(ctx, "update state set first = ?, bytes = ?", int64(to+1), left); err != nil {
		return false, err
	}
	if err := tx.Commit(); err != nil {
		return false, err
	}
	l.broken = false
	l.hold(to+1, last, left)
	return to-first+1 == trimChunk, nil
}

// cut finds up to where to remove, first-1 for nothing, and how many bytes are left then.
func (l *log) cut(ctx context.Context, first, last uint64, size int64) (to uint64, left int64, err error) {
	rows, err := l.read.QueryContext(ctx, "select pos, at, length(value) from log where pos >= ? order by pos limit ?", int64(first), trimChunk)
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = rows.Close() }()
	to = first - 1
	before := time.Now().Add(-l.cfg.MaxAge).UnixNano()
	for rows.Next() {
		var pos, at, length int64
		if err := rows.Scan(&pos, &at, &length); err != nil {
			return 0, 0, err
		}
		old := l.cfg.MaxAge > 0 && at < before
		over := l.cfg.MaxBytes > 0 && size > l.cfg.MaxBytes && uint64(pos) < last
		if !old && !over {
			break
		}
		to, size = uint64(pos), size-length-overhead
	}
	return to, size, rows.Err()
}
