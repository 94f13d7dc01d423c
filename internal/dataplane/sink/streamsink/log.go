package streamsink

import (
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
	write, read *sql.DB // write has one connection, so that SQLite never has two writers of this process
	name        string  // the generation; it never changes
	duplicates  atomic.Int64

	// turn is a lock that a context can interrupt: trim waits for it no longer than its sink lives. It guards the fields up to scratch.
	turn chan struct{}
	// seen has what was committed, and no more unless broken is set.
	seen *identity.Seen
	// broken is set from the first change of seen until the commit has returned without an error. A commit whose answer was lost may have been made: the next
	// append loads what the file has.
	broken  bool
	closed  bool
	record  []byte         // reused by insert
	scratch []flow.Message // reused by insert; it holds no message between calls

	// mu guards the fields below. It is held for assignments only, and never while turn is waited for.
	mu sync.Mutex
	// first and last are the positions that the log has. Invariant: first-1 <= last, and first-1 == last when there is none. Both only grow.
	first, last uint64
	bytes       int64         // of values and overhead
	grown       chan struct{} // closed when last has moved, and replaced by another
	due         chan struct{} // wakes retain; of capacity 1, so that hold never waits
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

// busy is how long to wait while another program has locked the file, such as a shell of SQLite.
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

// makeDir makes a directory and those above it, durably: SQLite syncs the directory of its file, and none above.
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

var errNotALog = errors.New("it is not a log of a stream sink; move it away")

// create makes the tables in a new file, and refuses a file of another program.
func (l *log) create(ctx context.Context) error {
	tx, err := l.write.BeginTx(ctx, nil)
	if err != nil {
		if strings.Contains(err.Error(), "not a database") {
			return errNotALog
		}
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if isNew, err := isNewFile(ctx, tx); err != nil || !isNew {
		return err
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

// isNewFile reports whether the file has no tables yet. A file that is not a log of this version or an earlier one is an error.
func isNewFile(ctx context.Context, tx *sql.Tx) (bool, error) {
	var version, application, tables int64
	for query, into := range map[string]*int64{"pragma user_version": &version, "pragma application_id": &application, "select count(*) from sqlite_master": &tables} {
		if err := tx.QueryRowContext(ctx, query).Scan(into); err != nil {
			return false, err
		}
	}
	switch {
	case version == 0 && application == 0 && tables == 0:
		return true, nil
	case application != applicationID:
		return false, errNotALog
	case version > formatVersion:
		return false, fmt.Errorf("it was written by a newer version of Levada (format %d, this one knows %d)", version, formatVersion)
	}
	return false, nil
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
	if err := l.loadIDs(ctx); err != nil {
		return err
	}
	l.broken = false
	l.hold(uint64(first), uint64(last), size)
	return nil
}

// loadIDs adds the ids of messages without positions to seen, oldest first, as they were admitted.
func (l *log) loadIDs(ctx context.Context) error {
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
	return rows.Err()
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
	in := newInsertion(l, tx, last)
	if err := in.blocks(ctx, blocks); err != nil {
		return err
	}
	if !in.changed {
		l.broken = false
		return nil // all was there already
	}
	size += in.bytes
	if _, err := tx.ExecContext(ctx, "update state set last = ?, bytes = ?, seen = ?", int64(in.last), size, l.seen.Marshal()); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	l.broken = false
	l.hold(first, in.last, size)
	return nil
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
