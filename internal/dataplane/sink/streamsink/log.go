package streamsink

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	_ "modernc.org/sqlite" // the driver

	"github.com/levada-io/levada/internal/dataplane/identity"
	"github.com/levada-io/levada/internal/flow"
	"github.com/levada-io/levada/stream"
)

// log is the stream as it lies on the disk. One transaction at a time writes; readers see what was committed, which SQLite makes durable before it
// shows it.
type log struct {
	cfg         Config
	write, read *sql.DB
	name        string // the generation
	duplicates  atomic.Int64

	// turn is held by who writes. It guards what follows.
	turn    chan struct{}
	seen    *identity.Seen
	broken  bool // seen may hold more than was committed
	closed  bool
	record  []byte
	scratch []flow.Message

	mu          sync.Mutex
	first, last uint64 // what is held; last is first-1 when that is nothing
	bytes       int64
	grown       chan struct{} // closed when last has moved
	due         chan struct{} // tells retain to look
}

// The format of the file. A later version must read this one, and refuses what is newer than itself.
const (
	formatVersion = 1
	applicationID = 0x4c535452 // "LSTR"

	schema = `
create table log (pos integer primary key, at integer not null, value blob not null);
create table ids (n integer primary key, at integer not null, id text not null);
create table state (one integer primary key check (one = 1), name text not null, first integer not null, last integer not null, bytes integer not null, seen blob not null);
`
)

// overhead is what a record counts as beside its value, in bytes: row, position and time.
const overhead = 32

// busy is how long it is waited for somebody else who has the file, such as a person with a tool.
const busy = 5 * time.Second

func openLog(ctx context.Context, cfg Config) (*log, error) {
	path, err := filepath.Abs(cfg.Path)
	if err != nil {
		return nil, err
	}
	if err := makeDir(filepath.Dir(path)); err != nil {
		return nil, err
	}
	l := &log{cfg: cfg, turn: make(chan struct{}, 1), grown: make(chan struct{}), due: make(chan struct{}, 1)}
	if l.write, err = openFile(path, 1, url.Values{"_txlock": {"immediate"}}, "journal_mode(WAL)"); err != nil {
		return nil, err
	}
	if l.read, err = openFile(path, 8, nil, "query_only(1)"); err != nil {
		return nil, errors.Join(err, l.write.Close())
	}
	err = l.create(ctx)
	if err == nil {
		err = l.load(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

// makeDir makes a directory and those above it, durably: SQLite sees to the names in it, and to no others.
func makeDir(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	above := filepath.Dir(dir)
	if above != dir {
		if err := makeDir(above); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	d, err := os.Open(above)
	if err != nil {
		return err
	}
	err = d.Sync()
	if runtime.GOOS == "windows" {
		err = nil // which knows no such thing
	}
	return errors.Join(err, d.Close())
}

func openFile(path string, connections int, query url.Values, pragmas ...string) (*sql.DB, error) {
	q := url.Values{"_pragma": append([]string{
		fmt.Sprintf("busy_timeout(%d)", busy.Milliseconds()),
		"page_size(16384)",  // large pages hold large records in fewer steps
		"synchronous(FULL)", // a commit that was reported is on the disk
	}, pragmas...)}
	for k, v := range query {
		q[k] = v
	}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: filepath.ToSlash(path), RawQuery: q.Encode()}).String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(connections)
	db.SetMaxIdleConns(connections)
	return db, nil
}

// create makes the tables in a new file, and refuses a file that is somebody else's.
func (l *log) create(ctx context.Context) error {
	tx, err := l.write.BeginTx(ctx, nil)
	if err != nil {
		if strings.Contains(err.Error(), "not a database") {
			return errors.New("it is not a log of a stream sink; move it away")
		}
		return err
	}
	defer func() { _ = tx.Rollback() }()
	var version, application, tables int64
	for query, into := range map[string]*int64{"pragma user_version": &version, "pragma application_id": &application, "select count(*) from sqlite_master": &tables} {
		if err := tx.QueryRowContext(ctx, query).Scan(into); err != nil {
			return err
		}
	}
	switch {
	case version == 0 && application == 0 && tables == 0:
	case application != applicationID:
		return errors.New("it is not a log of a stream sink; move it away")
	case version > formatVersion:
		return fmt.Errorf("it was written by a newer version of Levada (format %d, this one knows %d)", version, formatVersion)
	default:
		return nil
	}
	if _, err := tx.ExecContext(ctx, schema); err != nil {
		return err
	}
	empty := identity.New(l.cfg.IDWindow, l.cfg.MaxIDs).Marshal()
	if _, err := tx.ExecContext(ctx, "insert into state values (1, ?, 1, 0, 0, ?)", stream.NewID(), empty); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, fmt.Sprintf("pragma application_id = %d; pragma user_version = %d", applicationID, formatVersion)); err != nil {
		return err
	}
	return tx.Commit()
}

// load reads what was committed.
func (l *log) load(ctx context.Context) error {
	var first, last, size int64
	var seen []byte
	err := l.write.QueryRowContext(ctx, "select name, first, last, bytes, seen from state").Scan(&l.name, &first, &last, &size, &seen)
	if err != nil {
		return err
	}
	l.seen = identity.New(l.cfg.IDWindow, l.cfg.MaxIDs)
	if err := l.seen.Unmarshal(seen); err != nil {
		return err
	}
	rows, err := l.write.QueryContext(ctx, "select at, id from ids order by n")
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var at int64
		var id string
		if err := rows.Scan(&at, &id); err != nil {
			return err
		}
		l.seen.Admit(&flow.Block{ByID: true, Messages: []flow.Message{{ID: id}}}, time.Unix(0, at))
	}
	if err := rows.Err(); err != nil {
		return err
	}
	l.broken = false
	l.hold(uint64(first), uint64(last), size)
	return nil
}

// hold tells readers what the log has.
func (l *log) hold(first, last uint64, size int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.first, l.bytes = first, size
	if last != l.last {
		l.last = last
		close(l.grown)
		l.grown = make(chan struct{})
	}
	if l.cfg.MaxBytes > 0 && size > l.cfg.MaxBytes {
		select {
		case l.due <- struct{}{}:
		default:
		}
	}
}

func (l *log) held() (first, last uint64, size int64, grown <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.first, l.last, l.bytes, l.grown
}

// append stores what is new of blocks, durably, all or nothing.
func (l *log) append(ctx context.Context, blocks []*flow.Block) error {
	l.turn <- struct{}{}
	defer func() { <-l.turn }()
	if l.closed {
		return ErrClosed
	}
	if l.broken {
		if err := l.load(ctx); err != nil {
			return fmt.Errorf("go back to the last commit: %w", err)
		}
	}
	first, last, size, _ := l.held()
	l.broken = true // until it is known what was committed
	tx, err := l.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	last, added, changed, err := l.insert(ctx, tx, blocks, last)
	if err != nil {
		return err
	}
	if !changed {
		l.broken = false
		return nil // all was there already
	}
	size += added
	if _, err := tx.ExecContext(ctx, "update state set last = ?, bytes = ?, seen = ?", int64(last), size, l.seen.Marshal()); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	l.broken = false
	l.hold(first, last, size)
	return nil
}

// insert adds what is new of blocks after the position last. It returns the last position then, how many bytes were added, and whether anything
// of the blocks was new.
func (l *log) insert(ctx context.Context, tx *sql.Tx, blocks []*flow.Block, from uint64) (last uint64, added int64, changed bool, err error) {
	last = from
	now := time.Now()
	rows := inserter{tx: tx, head: "insert into log (pos, at, value) values "}
	ids := inserter{tx: tx, head: "insert into ids (n, at, id) values "}
	defer func() { clear(l.scratch[:cap(l.scratch)]) }() // holds no message after Write
	for _, block := range blocks {
		// Admit deletes from the block; the caller may need its block again.
		b := *block
		l.scratch = append(l.scratch[:0], b.Messages...)
		b.Messages, b.Prev = l.scratch, 0
		l.seen.Admit(&b, now)
		l.duplicates.Add(int64(len(block.Messages) - len(b.Messages)))
		if len(b.Messages) == 0 && len(block.Messages) > 0 {
			continue
		}
		changed = true
		for i := range b.Messages {
			m := &b.Messages[i]
			last++
			value := m.Value
			if l.cfg.Payload != Value {
				l.record = l.cfg.Payload.append(l.record[:0], m)
				value = bytes.Clone(l.record)
			}
			if value == nil {
				value = []byte{}
			}
			added += int64(len(value)) + overhead
			if err := rows.add(ctx, int64(last), now.UnixNano(), value); err != nil {
				return 0, 0, false, err
			}
			if b.ByID {
				if err := ids.add(ctx, nil, now.UnixNano(), m.ID); err != nil {
					return 0, 0, false, err
				}
			}
		}
	}
	if err := rows.flush(ctx); err != nil {
		return 0, 0, false, err
	}
	if ids.any {
		if err := ids.flush(ctx); err != nil {
			return 0, 0, false, err
		}
		const forget = "delete from ids where at < ? or n <= (select max(n) from ids) - ?"
		if _, err := tx.ExecContext(ctx, forget, now.Add(-l.cfg.IDWindow).UnixNano(), l.cfg.MaxIDs); err != nil {
			return 0, 0, false, err
		}
	}
	return last, added, changed, nil
}

// inserter inserts rows of three columns, many with one statement.
type inserter struct {
	tx   *sql.Tx
	head string
	args []any
	any  bool
}

// together is how many rows one statement inserts, so that the cost of a call counts little.
const together = 64

func (i *inserter) add(ctx context.Context, row ...any) error {
	i.args, i.any = append(i.args, row...), true
	if len(i.args) < 3*together {
		return nil
	}
	return i.flush(ctx)
}

func (i *inserter) flush(ctx context.Context) error {
	if len(i.args) == 0 {
		return nil
	}
	places := strings.Repeat("(?,?,?),", len(i.args)/3)
	_, err := i.tx.ExecContext(ctx, i.head+places[:len(places)-1], i.args...)
	i.args = i.args[:0]
	return err
}

func (l *log) close() error {
	l.turn <- struct{}{}
	defer func() { <-l.turn }()
	if l.closed {
		return nil
	}
	l.closed = true
	return errors.Join(l.read.Close(), l.write.Close())
}
