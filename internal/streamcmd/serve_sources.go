package streamcmd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/pgsource"
)

// servedSources are what is served.
type servedSources struct {
	byName map[string]stream.Source
	names  []string // in the order of the flags, files first
	pool   *pgxpool.Pool
}

func (s *servedSources) close() {
	if s.pool != nil {
		s.pool.Close()
	}
}

// sources opens what is to be served.
func (f *serveFlags) sources(ctx context.Context) (*servedSources, error) {
	names, files, err := named("--file", "NAME=PATH, for instance --file orders=orders.ndjson", f.files, false)
	if err != nil {
		return nil, err
	}
	tableNames, tables, err := named("--table", "NAME=TABLE, for instance --table users=public.users", f.tables, false)
	if err != nil {
		return nil, err
	}
	if err := f.checkSources(len(names), len(tableNames)); err != nil {
		return nil, err
	}
	s := &servedSources{byName: map[string]stream.Source{}, names: names}
	for _, name := range names {
		if err := readableFile(files[name]); err != nil {
			return nil, commandline.Usagef("--file %s: %w", name, err)
		}
		s.byName[name] = stream.File(files[name], stream.FileOptions{Follow: f.follow, Identity: f.identity})
	}
	if len(tableNames) == 0 {
		return s, nil
	}
	if err := f.openTables(ctx, s, tableNames, tables); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// checkSources refuses flags that name nothing to serve, or that do not go together.
func (f *serveFlags) checkSources(files, tables int) error {
	switch {
	case tables == 0 && f.postgres != "":
		return commandline.Usagef("--postgres needs --table NAME=TABLE: which tables to serve")
	case files+tables == 0:
		return commandline.Usagef("nothing to serve: expected --file NAME=PATH, or --postgres URL with --table NAME=TABLE")
	case tables > 0 && f.postgres == "":
		return commandline.Usagef("--table needs --postgres, the URL of the table's database")
	case tables == 0 && (f.snapshot || f.static || f.horizon != "" || f.value != "" || len(f.key) > 0):
		return commandline.Usagef("--key, --horizon, --value, --snapshot and --static are for --table")
	}
	return nil
}

// openTables adds the tables to what is served.
func (f *serveFlags) openTables(ctx context.Context, s *servedSources, names []string, tables map[string]string) (err error) {
	kinds := 0
	for _, given := range []bool{f.snapshot, f.static, f.horizon != ""} {
		if given {
			kinds++
		}
	}
	if kinds != 1 {
		return commandline.Usagef("say of the tables exactly one of --horizon COLUMN (rows appear while jobs read), --snapshot (a copy for each job) and --static (rows do not change)")
	}
	if _, err := pgxpool.ParseConfig(f.postgres); err != nil {
		return commandline.Usagef("--postgres: %w", err)
	}
	if s.pool, err = pgsource.Connect(ctx, f.postgres); err != nil {
		return fmt.Errorf("--postgres: %w", err)
	}
	for _, name := range names {
		if _, twice := s.byName[name]; twice {
			return commandline.Usagef("stream %s is both a --file and a --table", name)
		}
		if s.byName[name], err = f.table(ctx, s.pool, tables[name]); err == nil {
			err = readableTable(ctx, s.pool, tables[name], s.byName[name], f.snapshot)
		}
		if err != nil {
			return fmt.Errorf("--table %s=%s: %w", name, tables[name], err)
		}
		s.names = append(s.names, name)
	}
	return nil
}

// readableFile finds out before anything is announced what would end each stream of the file.
func readableFile(path string) error {
	info, err := os.Stat(path) // before opening, which would wait in a named pipe
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file (%v): expected a file of lines, which can be read again", path, info.Mode().Type())
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	return file.Close()
}

// readableTable does the same for a table: its rows may be read, and its columns are what the flags say.
func readableTable(ctx context.Context, pool *pgxpool.Pool, table string, source stream.Source, snapshot bool) error {
	asking, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	if _, err := pool.Exec(asking, `select from `+postgresIdentifier(table)+` limit 0`); err != nil {
		return fmt.Errorf("read the table as user %q: %w", pool.Config().ConnConfig.User, err)
	}
	if snapshot { // which opening it would make
		return nil
	}
	cursor, err := source.Open(asking, stream.Query{})
	if err != nil {
		return err
	}
	return cursor.Close()
}

func (f *serveFlags) table(ctx context.Context, pool *pgxpool.Pool, table string) (stream.Source, error) {
	q := pgsource.Query{Table: table, Key: f.key, Horizon: f.horizon, Static: f.static, Value: f.value, Follow: f.follow}
	if len(q.Key) == 0 {
		var err error
		if q.Key, err = primaryKey(ctx, pool, table); err != nil {
			return nil, err
		}
	}
	if f.snapshot {
		return pgsource.Snapshot(pool, q)
	}
	return pgsource.Keyset(pool, q)
}

// primaryKey returns the columns of a table's primary key, in its order.
func primaryKey(ctx context.Context, pool *pgxpool.Pool, table string) ([]string, error) {
	asking, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	var there bool
	if err := pool.QueryRow(asking, `select to_regclass($1) is not null`, postgresIdentifier(table)).Scan(&there); err != nil {
		return nil, err
	}
	if !there {
		return nil, errors.New("there is no such table in the database of --postgres")
	}
	rows, err := pool.Query(asking, `select a.attname::text from pg_index i, unnest(i.indkey::int2[]) with ordinality k(attnum, n), pg_attribute a
		where i.indrelid = to_regclass($1) and i.indisprimary and a.attrelid = i.indrelid and a.attnum = k.attnum order by k.n`, postgresIdentifier(table))
	if err != nil {
		return nil, err
	}
	columns, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	if len(columns) == 0 {
		return nil, errors.New("it has no primary key: name the columns of the order with --key, which must be unique together")
	}
	return columns, nil
}
